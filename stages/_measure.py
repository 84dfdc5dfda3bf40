"""Windows through the model (and some through the dense one), batch by batch, resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages._project import Project
from zpruner.evaluate import compare, window_losses
from zpruner.model import load_model
from zpruner.params import PerplexitySettings
from zpruner.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Step = Callable[[], None]


def load(project: Project, folder: Path) -> PreTrainedModel:
    """Return the model of a checkpoint folder, loaded as params.yaml says."""
    model = project.params.model
    return load_model(folder, device=model.device, trust_remote_code=model.trust_remote_code)


def batches_of(windows: Tensor, settings: PerplexitySettings) -> list[tuple[int, int]]:
    """Return (start, stop) of every batch; the windows compared with the dense model come first, in whole batches.

    The dense model itself is run in the same batches, so that both meet the same rounding.
    """
    compared, count, size = min(settings.divergence, len(windows)), len(windows), settings.batch_size
    parts = ((0, compared), (compared, count))
    return [(start, min(start + size, stop)) for first, stop in parts for start in range(first, stop, size)]


def measure(
    work: Work,
    model: PreTrainedModel,
    compare_in: Project | None,
    windows: Tensor,
    settings: PerplexitySettings,
    step: Step,
) -> dict[str, list[float]]:
    """Return losses, divergences and seconds; batches that an interrupted run measured are taken from the journal.

    Args:
        work: the open work folder.
        model: what is measured.
        compare_in: the project whose dense model the first `divergence` windows are compared with; None: none are.
        windows: int (windows, seqlen) token ids.
        settings: of the measurement.
        step: called after each batch.
    """
    result: dict[str, list[float]] = {
        key: [] for key in ("losses", "kl", "agreement", "seconds", "dense_seconds", "compared_tokens")
    }
    dense: PreTrainedModel | None = None
    for start, stop in batches_of(windows, settings):
        entry = work.done(f"windows-{start}")
        if entry is None:
            batch = windows[start:stop]
            if compare_in is not None and start < settings.divergence:
                if dense is None:
                    dense = load(compare_in, compare_in.dense)
                    compare(model, dense, batch[:1], settings.stride)  # the first pass of a process is slower
                found = asdict(compare(model, dense, batch, settings.stride))
                entry = {**found, "seconds": [found["seconds"]], "dense_seconds": [found["dense_seconds"]]}
                entry["compared_tokens"] = [batch.numel()]
            else:
                dense = None
                entry = {"losses": next(iter(window_losses(model, batch, len(batch), settings.stride)))}
            work.record(f"windows-{start}", entry)
        for key, values in entry.items():
            result[key] += values
        step()
    return result


def speed_of(model: PreTrainedModel, windows: Tensor, measured: dict[str, list[float]]) -> dict[str, Any]:
    """Return tokens per second of both models, taken in turns in this process; empty where nothing was compared."""
    tokens = sum(measured["compared_tokens"])
    if not tokens:
        return {}
    return {
        "tokens_per_second": tokens / sum(measured["seconds"]),
        "dense_tokens_per_second": tokens / sum(measured["dense_seconds"]),
        "speed_tokens": int(tokens),
        "speed_seqlen": windows.shape[1],
        "threads": torch.get_num_threads(),
        "device": str(model.device),
    }
