"""How far a Gram matrix is to be shrunk towards uncorrelated inputs, found from two halves of the calibration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from zpruner.linalg._conjugate_gradients import masked_cg
from zpruner.linalg._hessian import DampedHessian, damped_hessian
from zpruner.runtime.products import matmul
from zpruner.types import LayerStats, Stat

Shrinkage = Annotated[float, Field(ge=0.0)] | Literal["auto"]
"""Share of each entry of a Hessian's diagonal added to itself; `auto`: see `choose_shrinkage`."""

_ROWS = 24
"""Rows of the weight that are solved: enough for a choice among factors of 2."""
_STEPS = 12
_LEAST, _MOST = 0.2, 0.2 * 2**8
"""What is tried. Two halves of one text agree on less than the least with many tokens, and are right about that text:
another text differs more from both of them than they do from each other."""


def statistics_for(shrinkage: Shrinkage) -> frozenset[Stat]:
    """Return what a Hessian is made from: for `auto` what half the tokens say, too."""
    return frozenset({Stat.GRAM, Stat.GRAM_HALF} if shrinkage == "auto" else {Stat.GRAM})


def shrunk_hessian(
    weight: Tensor, keep: Callable[[], Tensor], stats: LayerStats, damping: float, shrinkage: Shrinkage
) -> DampedHessian:
    """Return the damped Hessian of a layer's input; arguments and errors as in `choose_shrinkage`.

    Args:
        weight: float32 (out, in), dense.
        keep: gives a mask, bool (out, in); asked for `auto` alone.
        stats: of the layer's input.
        damping: as in `damped_hessian`.
        shrinkage: as in `damped_hessian`, or `auto`.

    Raises:
        MissingStatisticError: `gram`, or `gram_half` for `auto`, was not collected.
    """
    gram = stats.require(Stat.GRAM)
    if shrinkage == "auto":
        shrinkage = choose_shrinkage(weight, keep(), gram, stats.require(Stat.GRAM_HALF), damping, stats.layer)
    return damped_hessian(gram, damping, stats.layer, shrinkage=shrinkage)


def choose_shrinkage(weight: Tensor, keep: Tensor, gram: Tensor, half: Tensor, damping: float, layer: str) -> float:
    """Return the shrinkage with which least squares on one half of the calibration lose least on the other.

    Some rows are solved on the first half with a shrinkage of 0.2, then with twice as much, as long as that lowers the
    loss on the second half. Without a second half that tells anything it is the largest that is tried, with which
    hardly a weight changes.

    Args:
        weight: float32 (out, in), dense.
        keep: bool (out, in), True = kept: a mask such as the one that is to be updated.
        gram: `X X^T` over all tokens, float32 (in, in).
        half: the same over the first half of the tokens.
        damping: as in `damped_hessian`.
        layer: the layer's name, for messages.

    Raises:
        NonFiniteError, ShapeMismatchError: as `damped_hessian`.
    """
    rows = torch.arange(0, len(weight), max(1, len(weight) // _ROWS), device=weight.device)
    other = gram - half
    if not bool(half.diagonal().any()) or not bool(other.diagonal().any()):
        return _MOST
    hessian = damped_hessian(half, damping, layer)
    seen = hessian.matrix.diagonal() - damping  # what a shrinkage is a share of
    kept = keep[rows] & ~hessian.dead
    weight = weight[rows].masked_fill(hessian.dead, 0.0)
    weight = weight / weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    removed = weight.masked_fill(kept, 0.0)
    scale = other.diagonal().mean()

    def lost(shrinkage: float) -> float:
        hessian.matrix.diagonal().add_(seen, alpha=shrinkage)
        target = matmul(removed, hessian.matrix)
        loss = torch.linalg.vecdot(removed, target)
        change = masked_cg(hessian.matrix, kept, target, loss, tolerance=1e-3, max_steps=_STEPS).values
        hessian.matrix.diagonal().sub_(seen, alpha=shrinkage)
        left = removed - change
        return float(torch.sum(matmul(left, other).div_(scale).mul_(left), dtype=torch.float64))

    best, least = _LEAST, lost(_LEAST)
    while best * 2 <= _MOST and (found := lost(best * 2)) < least:
        best, least = best * 2, found
    return best
