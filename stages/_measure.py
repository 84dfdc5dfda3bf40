"""Windows through the model (and some through the dense one), batch by batch, resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from zpruner.artifacts.work import Work
from zpruner.evaluate import CHOICES, Logits, Predictor, batch_losses, compare_batches, first_choices
from zpruner.execution import Runner
from zpruner.settings.texts import PerplexitySettings

Step = Callable[[], None]


def batches_of(windows: Tensor, settings: PerplexitySettings) -> list[tuple[int, int]]:
    """Return (start, stop) of every batch; the windows compared with the dense model come first, in whole batches.

    The dense model itself is run in the same batches, so that both meet the same rounding.
    """
    compared, count, size = min(settings.divergence, len(windows)), len(windows), settings.batch_size
    parts = ((0, compared), (compared, count))
    return [(start, min(start + size, stop)) for first, stop in parts for start in range(first, stop, size)]


def measure(
    work: Work,
    runner: Runner,
    open_dense: Callable[[], Runner] | None,
    windows: Tensor,
    settings: PerplexitySettings,
    counted: int,
    step: Step,
) -> dict[str, list[float]]:
    """Return losses, divergences, seconds, and the first choices in the first window.

    Batches that an interrupted run measured are taken from the journal.

    Args:
        work: the open work folder.
        runner: of what is measured. Where its weights are read block by block, all batches advance together, and are
            journalled together.
        open_dense: opens the dense model that the first `divergence` windows are compared with; None: none are.
        windows: int (windows, seqlen) token ids.
        settings: of the measurement.
        counted: how many of a window's last tokens count.
        step: called after each batch.
    """
    spans = batches_of(windows, settings)
    todo = [span for span in spans if work.done(_item(span)) is None]
    for _ in range(len(spans) - len(todo)):
        step()
    compared = [span for span in todo if open_dense is not None and span[0] < settings.divergence]
    others = [span for span in todo if span not in compared]
    with Predictor(runner) as predictor:
        if compared and open_dense is not None:
            found = _compare(predictor, open_dense(), [windows[slice(*span)] for span in compared], counted)
            for span, entry in zip(compared, found, strict=True):
                work.record(_item(span), entry)
                step()
        batches = [windows[slice(*span)] for span in others]

        def predicted(index: int, logits: Logits) -> dict[str, list[float]]:
            ids = batches[index]
            return {"losses": batch_losses(logits, ids, counted), "choices": [*first_choices(logits, ids)]}

        for span, entry in zip(others, predictor.run(batches, predicted), strict=True):
            work.record(_item(span), entry)
            step()
    runner.release()
    result: dict[str, list[float]] = {
        key: [] for key in ("losses", "kl", "agreement", "seconds", "dense_seconds", "compared_tokens", "choices")
    }
    for span in spans:
        for key, values in (work.done(_item(span)) or {}).items():
            result[key] += values
    return result | {"choices": result["choices"][: windows.shape[1] - 1][:CHOICES]}


def _compare(
    predictor: Predictor, dense: Runner, batches: list[Tensor], counted: int
) -> Iterator[dict[str, list[float]]]:
    with Predictor(dense) as reference:
        # An accelerator's first pass is slower; on a processor the few tokens of the predictors' probes are enough.
        if not predictor.runner.streamed and predictor.runner.device.type != "cpu":
            next(compare_batches(predictor, reference, [batches[0][:1, : max(2, batches[0].shape[1] // 4)]], None))
        for batch, found in zip(batches, compare_batches(predictor, reference, batches, counted), strict=True):
            yield {
                **asdict(found),
                "seconds": [found.seconds],
                "dense_seconds": [found.dense_seconds],
                "compared_tokens": [batch.numel()],
            }
    # Hooks refer to it and it to them: without this its head would stay until the garbage is collected.
    dense.release()


def _item(span: tuple[int, int]) -> str:
    return f"windows-{span[0]}"


def speed_of(runner: Runner, windows: Tensor, measured: dict[str, list[float]]) -> dict[str, Any]:
    """Return tokens per second of both models, taken in turns in this process.

    Empty where nothing was compared, and where weights were read block by block, which takes most of the time.
    """
    tokens = sum(measured["compared_tokens"])
    if not tokens or runner.streamed:
        return {}
    return {
        "tokens_per_second": tokens / sum(measured["seconds"]),
        "dense_tokens_per_second": tokens / sum(measured["dense_seconds"]),
        "speed_tokens": int(tokens),
        "speed_seqlen": windows.shape[1],
        "threads": torch.get_num_threads(),
        "device": str(runner.device),
    }
