"""Perplexity by the published protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zpruner.errors import NonFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def window_losses(
    model: PreTrainedModel, windows: Tensor, batch_size: int = 8, stride: int | None = None
) -> Iterator[list[float]]:
    """Yield, batch by batch, each window's mean negative log-likelihood over its `seqlen - 1` predicted tokens.

    Args:
        model: any causal language model.
        windows: int (windows, seqlen) token ids.
        batch_size: windows per forward pass.
        stride: of windows that overlap: only the last so many tokens of each count.

    Logits are cast to float32 before the softmax, one window at a time.
    """
    device = next(model.parameters()).device
    for batch in windows.split(batch_size):
        ids = batch.to(device, torch.long)
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits
            yield [window_loss(row, target, stride) for row, target in zip(logits, ids, strict=True)]


def window_loss(logits: Tensor, ids: Tensor, stride: int | None = None) -> float:
    """Return the mean negative log-likelihood of one window: logits (seqlen, vocabulary), ids int64 (seqlen,)."""
    counted = counted_positions(len(ids), stride)
    return float(cross_entropy(logits[counted].float(), ids[1:][counted]))


def counted_positions(seqlen: int, stride: int | None) -> slice:
    """Return which of the `seqlen - 1` predictions of a window count: the last `stride`, all where it is None."""
    return slice(0 if stride is None else max(seqlen - 1 - stride, 0), seqlen - 1)


def perplexity(model: PreTrainedModel, windows: Tensor, batch_size: int = 8, stride: int | None = None) -> float:
    """Return exp of the mean window loss: the perplexity that the field reports. Arguments as in `window_losses`.

    Raises:
        NonFiniteError: a window's loss is NaN.
    """
    return perplexity_of([loss for losses in window_losses(model, windows, batch_size, stride) for loss in losses])


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
