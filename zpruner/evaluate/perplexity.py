"""Perplexity by the published protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zpruner.errors import NonFiniteError, whole_number
from zpruner.evaluate.predict import Logits, Predictor
from zpruner.model import as_windows, check_in_memory, reading, undisturbed
from zpruner.runtime.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POSITIONS = 128
"""Positions whose float32 distributions are held at once: 24 MiB of 49,152 tokens, whose pages the process keeps."""

CHOICES = 24
"""Positions whose most likely tokens a report shows side by side."""


def window_losses(
    model: PreTrainedModel, windows: Tensor, batch_size: int = 8, stride: int | None = None
) -> Iterator[list[float]]:
    """Yield, batch by batch, each window's mean negative log-likelihood over its `seqlen - 1` predicted tokens.

    Args:
        model: any causal language model.
        windows: int (windows, seqlen) token ids.
        batch_size: windows per pass of the decoder.
        stride: of windows that overlap: only the last so many tokens of each count.

    Logits are cast to float32 before the softmax, a bounded number of positions at a time.
    """
    batches = windows.split(batch_size)
    with Predictor(model) as predictor:
        yield from predictor.run(batches, lambda index, logits: batch_losses(logits, batches[index], stride))


def batch_losses(logits: Logits, ids: Tensor, stride: int | None = None) -> list[float]:
    """Return the loss of every window of a batch, int (windows, seqlen); see `window_losses`."""
    counted = counted_positions(ids.shape[1], stride)
    losses = []
    for window, targets in enumerate(ids[:, 1:]):
        sums = [token_losses(logits.rows(window, at), targets[at]) for at in logits.spans(counted)]
        losses.append(sum(sums) / (counted.stop - counted.start))
    return losses


def first_choices(logits: Logits, ids: Tensor) -> list[int]:
    """Return the token ranked first after each of the last words of the first window of a batch, CHOICES at most.

    Args:
        logits: of the batch.
        ids: int (windows, seqlen).
    """
    spans = logits.spans(counted_positions(ids.shape[1], CHOICES))
    return [int(choice) for at in spans for choice in logits.rows(0, at).argmax(dim=-1)]


def token_losses(logits: Tensor, targets: Tensor) -> float:
    """Return the sum of negative log-likelihoods: logits (positions, vocabulary), targets int (positions,)."""
    pieces = zip(logits.split(POSITIONS), targets.to(logits.device, torch.long).split(POSITIONS), strict=True)
    sums = [cross_entropy(rows.float(), wanted, reduction="sum") for rows, wanted in pieces]
    return float(torch.stack(sums).sum(dtype=torch.float64))


def counted_positions(seqlen: int, stride: int | None) -> slice:
    """Return which of the `seqlen - 1` predictions of a window count: the last `stride`, all where it is None."""
    return slice(0 if stride is None else max(seqlen - 1 - stride, 0), seqlen - 1)


@undisturbed
def perplexity(
    model: PreTrainedModel, windows: Tensor | Iterable[object], batch_size: int = 8, stride: int | None = None
) -> float:
    """Return exp of the mean window loss: the perplexity that the field reports. Arguments as in `window_losses`.

    Raises:
        ModelStructureError: weights that are not in memory.
        NonFiniteError: a window's loss is NaN.
        ShapeMismatchError, InvalidSettingError: windows that the model cannot read, or no batch size.
    """
    check_in_memory(model)
    windows, batch_size = as_windows(windows, model.config, least=2), whole_number("batch_size", batch_size, 1)
    stride = None if stride is None else whole_number("stride", stride, 1)
    with reading(model, windows):
        batches = window_losses(model, windows, batch_size, stride)
        shown = progress(batches, "perplexity", -(-len(windows) // batch_size), "batch")
        return perplexity_of([loss for losses in shown for loss in losses])


def perplexity_of(losses: Sequence[float]) -> float:
    """Return exp of the mean of window losses (infinity where that overflows).

    Raises:
        NonFiniteError: a loss is NaN.
    """
    mean = sum(losses) / len(losses)
    if math.isnan(mean):
        raise NonFiniteError(
            "perplexity", "a NaN loss", "a finite loss", "The model computes NaN: check its weights and dtype."
        )
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf
