"""`zpruner export`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpruner.artifacts.layout import Layout
from zpruner.cli import _options as option
from zpruner.cli._output import check_apart, check_output, place
from zpruner.cli._pack import saved_line
from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.patterns import StructuredPattern, parse_pattern

if TYPE_CHECKING:
    from zpruner.checkpoint import Checkpoint
    from zpruner.packed.content import Known


class Format(StrEnum):
    """How a variant is written."""

    dense = "dense"
    packed = "packed"


def export(
    method: Annotated[str, typer.Argument(help="A label under `methods` in params.yaml.")],
    sparsity: Annotated[str, typer.Argument(help="A label under `sparsities`.")],
    output: option.Output,
    root: option.Root = Path(),
    force: option.Force = False,
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="dense: zeros in place, as any library loads it; packed: without them.")
    ] = Format.dense,
    log: option.Log = None,
) -> None:
    """Copy a variant of the pipeline with what was measured on it in its model card, to publish it."""
    layout = Layout(root)
    variant = layout.pruned(method, sparsity)
    if not variant.is_dir():
        check_labels(root, method, sparsity)
    check_apart(output, variant, project=root)
    check_output(output, force)

    from zpruner.checkpoint import Checkpoint, write_manifest
    from zpruner.checkpoint.card import packed_card, with_results
    from zpruner.packed.pack import pack

    found = measured(layout, method, sparsity)
    checkpoint = Checkpoint(variant)
    if not checkpoint.tensor_bytes:
        raise ArtifactError(
            str(checkpoint.folder),
            "no weights: the variant was made in memory",
            "a checkpoint on disk",
            f"Add '{method}/{sparsity}' to evaluation.checkpoints in params.yaml and run `dvc repro`.",
        )
    if format is Format.packed:
        check_packs(checkpoint.manifest)
    checkpoint.verify_all()
    calibration = calibrated_on(root, checkpoint.folder / "README.md")
    facts = {key: value for key, value in checkpoint.manifest.items() if key not in ("model", "hash", "files")}
    card = with_results((checkpoint.folder / "README.md").read_text(encoding="utf-8"), found, calibration)
    said = f"{output}: {len(found)} measurements in its README.md"
    with place(output, force) as staging:
        if format is Format.packed:
            known = made_from(root, checkpoint, method, sparsity)
            saved = pack(checkpoint.folder, staging, known, facts=facts, card=packed_card(card))
            said = f"{saved_line(output, saved)}\n{said}"
        else:
            for name in checkpoint.files:
                shutil.copyfile(checkpoint.folder / name, staging / name)
            (staging / "README.md").write_text(card, encoding="utf-8")
            write_manifest(staging, checkpoint.model, **facts)
    typer.echo(said)


def check_packs(made: Mapping[str, Any]) -> None:
    """Raise InvalidSettingError for a variant that has nothing to leave out: whole structures went, no integers came.

    Args:
        made: the manifest of its checkpoint.
    """
    pattern, settings = made.get("pattern"), json.loads(str(made.get("settings") or "{}"))
    structured = isinstance(pattern, str) and isinstance(parse_pattern(pattern), StructuredPattern)
    if structured and not settings.get("quantize"):
        raise InvalidSettingError(
            "--format", f"packed for {pattern}", "dense: structures went whole, no zeros are left", "Leave it out."
        )


def made_from(root: Path, checkpoint: Checkpoint, method: str, sparsity: str) -> Known:
    """Return the masks of a variant, and the integers and scales of a quantised one.

    One that `zpruner prune` wrote has no masks beside it: what is not zero is kept.

    Raises:
        ArtifactError: masks or solved weights that are missing or of another variant.
    """
    from zpruner.artifacts.store import Provenance
    from zpruner.packed.content import Known
    from zpruner.packed.structure import transposed_tensors
    from zpruner.packed.variant import known_of_variant
    from zpruner.settings.reading import read_params

    layout, model = Layout(root), read_params(root / "params.yaml").model
    if not layout.masks(method, sparsity).is_dir():
        return Known(transposed_tensors(checkpoint.folder, trust_remote_code=model.trust_remote_code))
    made = checkpoint.manifest
    expected = Provenance(
        model_hash=str(made["dense"]),
        method=str(made["method"]),
        settings=str(made["settings"]),
        pattern=str(made["pattern"]),
        calibration_hash=str(made["calibration_hash"]),
    )
    return known_of_variant(
        checkpoint,
        layout.masks(method, sparsity),
        layout.solved(method, sparsity),
        expected,
        blocks=model.blocks,
        ignore=model.ignore,
        trust_remote_code=model.trust_remote_code,
    )


def check_labels(root: Path, method: str, sparsity: str) -> None:
    """Raise InvalidSettingError for a label that params.yaml does not list, with the nearest one."""
    from zpruner.settings.reading import read_params

    params = read_params(root / "params.yaml")
    params.method(method)
    params.pattern(sparsity)


_TEXT = {"source", "sha256", "sampling", "part", "bos", "seed", "temperature", "top_p", "drop", "prompt"}
"""Settings of the calibration that a card shows: what its windows come from."""


def calibrated_on(root: Path, card: Path) -> dict[str, Any]:
    """Return what params.yaml says of the calibration text, provided that `card` tells of a calibration on it.

    Raises:
        ArtifactError: the windows are not those of the checkpoint's calibration, or cannot be read.
    """
    from zpruner.checkpoint.card import tells
    from zpruner.settings.reading import read_params
    from zpruner.text import read_sources, read_windows

    text = card.read_text(encoding="utf-8")
    if not tells(text, "calibration_hash"):  # written by `zpruner prune`, which knows the text
        return {}
    settings = read_params(root / "params.yaml").calibration
    path = Layout(root).tokens("calibration")
    windows, found = read_windows(path)
    if found not in text:
        raise ArtifactError(
            str(path), f"windows of hash {found}", "those that the checkpoint was calibrated on", "Run `dvc repro`."
        )
    sources = {str(number): source for number, source in enumerate(read_sources(path), start=1)}
    if sources:
        chosen = {"source": sources, **settings.model_dump(mode="json", include={"bos", "seed"})}
    else:
        chosen = settings.model_dump(mode="json", include=_TEXT)
    return {**chosen, "seqlen": windows.shape[1]}


def measured(layout: Layout, method: str, sparsity: str) -> dict[str, tuple[float, float]]:
    """Return title -> (dense, pruned) of everything that was measured on a variant and on the dense model.

    Raises:
        ArtifactError: one of the two was not evaluated yet, or cannot be read.
    """
    from zpruner.artifacts.result_file import in_words, shown_fields, value_at
    from zpruner.artifacts.results import Metrics

    command = f"dvc repro evaluate_dense evaluate@{method}-{sparsity}"
    dense = Metrics.read(layout.evaluation("dense"), command)
    pruned = Metrics.read(layout.evaluation(method, sparsity), command)
    found = {}
    for path, shown in shown_fields(Metrics).items():
        before, after = value_at(dense, path), value_at(pruned, path)
        before = shown.dense if before is None else before
        if before is not None and after is not None:
            found[in_words(shown, pruned)] = (shown.number(before), shown.number(after))
    tasks = [{} if entry.zero_shot is None else entry.zero_shot.tasks for entry in (dense, pruned)]
    for task in sorted(tasks[0].keys() & tasks[1].keys()):
        before_scores, after_scores = (entry[task].scores for entry in tasks)
        for key in sorted(before_scores.keys() & after_scores.keys()):
            found[f"{task} {key}"] = (before_scores[key][0], after_scores[key][0])
    return found
