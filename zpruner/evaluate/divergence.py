"""How far a pruned model's predictions are from the dense model's, token by token, and how fast both are."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from zpruner.errors import ShapeMismatchError
from zpruner.evaluate.perplexity import counted_positions, window_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_POSITIONS = 128
"""Positions whose float32 distributions are held at once."""


@dataclass(frozen=True)
class Comparison:
    """A pruned model against the dense one on a few windows; each list has one number per window.

    Attributes:
        losses: the pruned model's mean negative log-likelihood, as `window_losses` gives it.
        kl: KL(dense || pruned) in nats, the mean over the predicted tokens that count.
        agreement: share of these tokens for which both models rank the same token first.
        seconds: of the pruned model's forward passes.
        dense_seconds: of the dense model's.
    """

    losses: list[float]
    kl: list[float]
    agreement: list[float]
    seconds: float
    dense_seconds: float


def compare(model: PreTrainedModel, dense: PreTrainedModel, windows: Tensor, stride: int | None = None) -> Comparison:
    """Run one batch of windows through both models.

    Args:
        model: the pruned model.
        dense: the unpruned one, on the same device.
        windows: int (windows, seqlen) token ids, one forward pass of each model.
        stride: as in `window_losses`.

    Raises:
        ShapeMismatchError: the models have different vocabularies.
    """
    device = next(model.parameters()).device
    ids = windows.to(device, torch.long)
    reference, dense_seconds = _timed_logits(dense, ids)
    logits, seconds = _timed_logits(model, ids)
    if logits.shape != reference.shape:
        raise ShapeMismatchError(
            "divergence",
            f"logits of shape {tuple(logits.shape)} and {tuple(reference.shape)}",
            "one vocabulary",
            "Compare a pruned model with the dense model that it was made from.",
        )
    counted = counted_positions(ids.shape[1], stride)
    pairs = [_divergence(row[counted], other[counted]) for row, other in zip(logits, reference, strict=True)]
    losses = [window_loss(row, target, stride) for row, target in zip(logits, ids, strict=True)]
    return Comparison(losses, [kl for kl, _ in pairs], [same for _, same in pairs], seconds, dense_seconds)


def _divergence(logits: Tensor, reference: Tensor) -> tuple[float, float]:
    """Return mean KL(reference || logits) and top-1 agreement over positions, float (positions, vocabulary)."""
    total, same = 0.0, 0
    for row, other in zip(logits.split(_POSITIONS), reference.split(_POSITIONS), strict=True):
        log_q, log_p = log_softmax(row.float(), dim=-1), log_softmax(other.float(), dim=-1)
        total += float(kl_div(log_q, log_p, reduction="sum", log_target=True))
        same += int((row.argmax(dim=-1) == other.argmax(dim=-1)).sum())
    return total / len(logits), same / len(logits)


@torch.no_grad()
def _timed_logits(model: PreTrainedModel, ids: Tensor) -> tuple[Tensor, float]:
    _wait(ids.device)
    start = perf_counter()
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    _wait(ids.device)
    return logits, perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
