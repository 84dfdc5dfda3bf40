"""`zpruner export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from zpruner.errors import ArtifactError


def export(
    method: Annotated[str, typer.Argument(help="A label under `methods` in params.yaml.")],
    sparsity: Annotated[str, typer.Argument(help="A label under `sparsities`.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.")],
    root: Annotated[Path, typer.Option(help="The project folder.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it is a checkpoint folder.")] = False,
) -> None:
    """Copy a variant of the pipeline with what was measured on it in its model card, to publish it."""
    from zpruner.checkpoint import Checkpoint, write_manifest
    from zpruner.checkpoint.card import with_results
    from zpruner.cli._output import check_output, place

    check_output(output, force)
    data = root / "data"
    found = measured(data / "evaluation", method, sparsity)
    checkpoint = Checkpoint(data / "pruned" / method / sparsity)
    if not checkpoint.tensor_bytes:
        raise ArtifactError(
            str(checkpoint.folder),
            "no weights: the variant was made in memory",
            "a checkpoint on disk",
            f"Add '{method}/{sparsity}' to evaluation.checkpoints in params.yaml and run `dvc repro`.",
        )
    checkpoint.verify_all()
    calibration = calibrated_on(root, checkpoint.folder / "README.md")
    facts = {key: value for key, value in checkpoint.manifest.items() if key not in ("model", "hash", "files")}
    with place(output, force) as staging:
        for name in checkpoint.manifest["files"]:
            shutil.copyfile(checkpoint.folder / name, staging / name)
        card = staging / "README.md"
        card.write_text(with_results(card.read_text(encoding="utf-8"), found, calibration), encoding="utf-8")
        write_manifest(staging, checkpoint.model, **facts)
    typer.echo(f"{output}: {len(found)} measurements in its README.md")


def calibrated_on(root: Path, card: Path) -> dict[str, Any]:
    """Return what params.yaml says of the calibration text, provided that `card` tells of a calibration on it.

    Raises:
        ArtifactError: the windows are not those of the checkpoint's calibration, or cannot be read.
    """
    from zpruner.settings.params import load
    from zpruner.text import read_windows

    text = card.read_text(encoding="utf-8")
    if "calibration_hash" not in text:  # written by `zpruner prune`, which knows the text
        return {}
    settings = load(root / "params.yaml").calibration
    path = root / "data" / "calibration" / "tokens.arrow"
    windows, found = read_windows(path)
    if found not in text:
        raise ArtifactError(
            str(path), f"windows of hash {found}", "those that the checkpoint was calibrated on", "Run `dvc repro`."
        )
    chosen = settings.model_dump(mode="json", include={"source", "sha256", "sampling", "part", "seed"})
    return {**chosen, "seqlen": windows.shape[1]}


def measured(folder: Path, method: str, sparsity: str) -> dict[str, tuple[float, float]]:
    """Return name -> (dense, pruned) of everything that the evaluation of a variant shares with that of dense.

    Raises:
        ArtifactError: one of the two was not evaluated yet, or cannot be read.
    """
    command = f"dvc repro evaluate_dense evaluate@{method}-{sparsity}"
    dense = _read(folder / "dense.json", command)
    pruned = _read(folder / method / f"{sparsity}.json", command)
    name = f"perplexity ({pruned['windows']} windows of {pruned['seqlen']} tokens)"
    found = {name: (float(dense["perplexity"]), float(pruned["perplexity"]))}
    if "divergence" in pruned:
        found["KL from dense per token, nats"] = (0.0, float(pruned["divergence"]["kl"]))
        found["same top token as dense"] = (1.0, float(pruned["divergence"]["top1_agreement"]))
    tasks = [entry.get("zero_shot", {}).get("tasks", {}) for entry in (dense, pruned)]
    for task in tasks[0].keys() & tasks[1].keys():
        scores = [entry[task] for entry in tasks]
        for key in sorted(scores[0].keys() & scores[1].keys() - {"version", "samples", "num_fewshot"}):
            if "_stderr" not in key:
                found[f"{task} {key}"] = (float(scores[0][key]), float(scores[1][key]))
    return found


def _read(path: Path, command: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"perplexity": found["perplexity"], "windows": found["windows"], "seqlen": found["seqlen"], **found}
    except FileNotFoundError:
        raise ArtifactError(str(path), "no file", "a variant that was evaluated", f"Run `{command}`.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(str(path), f"no metrics ({error})", "a metrics file", f"Run `{command}`.") from None
