"""`zpruner evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpruner.cli import _options as option
from zpruner.cli._early import local_path
from zpruner.errors import InvalidSettingError

if TYPE_CHECKING:
    from zpruner.pruning.opening import OpenedModel
    from zpruner.settings.params import ZeroShotSettings
    from zpruner.settings.texts import PerplexitySettings


def evaluate(
    model: option.Model,
    text: Annotated[
        str | None, typer.Option(metavar="SOURCE", help=f"The text to measure on: {option.SOURCES}.")
    ] = None,
    text_sha256: Annotated[str | None, typer.Option(help="SHA-256 that the text must have.")] = None,
    protocol: Annotated[
        str | None,
        typer.Option(help="wikitext2, ptb or c4, exactly as published; --text then names a copy of its data."),
    ] = None,
    seqlen: Annotated[
        int | None, typer.Option(min=2, help="Tokens per window.  [default: 512, or the protocol's]")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens from one window to the next, of which the last count.  [default: seqlen]"),
    ] = None,
    bos: option.Bos = option.BosName.auto,
    windows: Annotated[int | None, typer.Option(min=1, help="Only the first N windows.  [default: all]")] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", metavar="TASK", help="Tasks of lm-evaluation-harness: with commas between them, or repeated."
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(metavar="PATH", parser=option.folder, help="Folder of own tasks.  [default: tasks, if there]"),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples per question.  [default: the task's]")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N questions.  [default: all]")] = None,
    batch_size: option.BatchSize = 8,
    blocks: option.Blocks = None,
    ignore: option.Ignore = None,
    sha256: option.Sha256 = None,
    dtype: option.Dtype = option.DtypeName.auto,
    device: option.Device = "auto",
    downloads: option.Downloads = option.DOWNLOADS,
    trust_remote_code: option.TrustRemoteCode = False,
    log: option.Log = None,
) -> None:
    """Measure a model's perplexity on a text, with a 95 % interval, its scores on tasks, and count its zeros."""
    local_path("MODEL", model, sha256)
    local_path("--text", text, text_sha256)
    settings = _settings(text, protocol, sha256=text_sha256, seqlen=seqlen, stride=stride, windows=windows, bos=bos)
    questions = _tasks(tasks, include_path, num_fewshot, limit, batch_size)
    if settings is None and questions is None:
        got = "neither --text nor --protocol nor --tasks"
        raise InvalidSettingError("evaluate", got, "one of them", "Name a text, or a task.")

    from zpruner.evaluate import ZeroShot, achieved_sparsity, find_tasks
    from zpruner.model import resolve_device, take_inventory
    from zpruner.packed.linear import restore_dense
    from zpruner.runtime.progress import progress

    resolve_device(device)
    found = None if questions is None else find_tasks(questions, Path())
    opened = option.open_model(model, sha256, dtype, device, downloads, trust_remote_code)
    network = opened.model
    if settings is not None:
        _perplexity(opened, settings, batch_size, downloads)
    if questions is not None:
        harness = ZeroShot(network, opened.tokenizer, questions, Path(), found=found)
        for task in progress(questions.tasks, "tasks", len(questions.tasks), "task"):
            for name, scores in harness.run(task).items():
                typer.echo(_scores(name, scores))
    restore_dense(network)  # a packed model's zeros are counted as any other's
    sparsity = achieved_sparsity(network, take_inventory(network, blocks, ignore or ()).layers)
    typer.echo(f"sparsity    {sparsity:.2%} of the prunable weights are zero")


def _perplexity(opened: OpenedModel, settings: PerplexitySettings, batch_size: int, downloads: Path) -> None:
    from zpruner.evaluate import perplexity_interval, perplexity_of, window_losses
    from zpruner.runtime.progress import counter
    from zpruner.text import windows_hash

    ids, counted = option.read_evaluation_windows(settings, downloads, opened.model, opened.tokenizer)
    losses: list[float] = []
    with counter("evaluate", len(ids), "window") as step:
        for batch in window_losses(opened.model, ids, batch_size, counted):
            losses += batch
            for _ in batch:
                step()
    interval = perplexity_interval(losses)
    noise = f"  (95 % interval {interval.low:.4f} to {interval.high:.4f})" if interval else ""
    typer.echo(f"perplexity  {perplexity_of(losses):.4f}{noise}")
    typer.echo(f"windows     {len(ids)} of {ids.shape[1]} tokens, hash {windows_hash(ids)[:16]}, BOS {settings.begin}")


def _scores(task: str, scores: Mapping[str, float | str]) -> str:
    """Return one line about a task: each metric with its standard error, and the number of questions."""
    shown = [
        f"{name} {value:.4f}" + (f" +- {error:.4f}" if isinstance(error := scores.get(f"{name}_stderr"), float) else "")
        for name, value in scores.items()
        if isinstance(value, float)
        and not name.endswith("_stderr")
        and name not in ("version", "num_fewshot", "samples")
    ]
    count = f"  ({scores['samples']:g} questions)" if isinstance(scores.get("samples"), int | float) else ""
    return f"{task:<11} {', '.join(shown)}{count}"


def _tasks(
    named: list[str] | None, include_path: Path | None, num_fewshot: int | None, limit: int | None, batch_size: int
) -> ZeroShotSettings | None:
    """Return which tasks are run and how, None where none is named."""
    from zpruner.settings.params import ZeroShotSettings

    tasks = tuple(name for given in named or () for name in given.split(",") if name)
    if not tasks:
        return None
    own = include_path if include_path is not None else Path("tasks")
    folder = str(own) if include_path is not None or own.is_dir() else None
    return ZeroShotSettings(
        tasks=tasks, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size, include_path=folder
    )


def _settings(text: str | None, protocol: str | None, **given: str | int | None) -> PerplexitySettings | None:
    """Return what is measured, from a protocol, a text, or both; None where neither is named."""
    from pydantic import ValidationError

    from zpruner.evaluate import protocol as published
    from zpruner.settings.explain import explain
    from zpruner.settings.texts import PerplexitySettings

    changes = {key: value for key, value in {"source": text, **given}.items() if value is not None}
    if text is None and protocol is None:
        return None
    try:
        if protocol is not None:
            return published(protocol, **changes)
        return PerplexitySettings.model_validate({"seqlen": 512, **changes})
    except ValidationError as error:
        raise explain(error, "evaluate", PerplexitySettings) from None
