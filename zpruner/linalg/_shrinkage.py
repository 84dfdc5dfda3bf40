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
"""Share of each entry of a Hessian's diagonal added to itself; `auto`: see `choose_regularisation`."""
Damping = Annotated[float, Field(ge=0.0)] | Literal["auto"]
"""Share of the mean of a Hessian's diagonal added to it; `auto`: see `choose_regularisation`."""

_ROWS = 24
"""Rows of the weight that are solved: enough for a choice among factors of 2."""
_STEPS = 12
_LEAST_SHRINKAGE, _LEAST_DAMPING, _DOUBLED = 0.2, 0.1, 8
"""What is tried: the least, and up to so many doublings. Two halves of one text agree on less than the least with many
tokens, and are right about that text: another text differs more from both of them than they do from each other."""


def statistics_for(damping: Damping, shrinkage: Shrinkage) -> frozenset[Stat]:
    """Return what a Hessian is made from: for `auto` what half the tokens say, too."""
    halves = "auto" in (damping, shrinkage)
    return frozenset({Stat.GRAM, Stat.GRAM_HALF} if halves else {Stat.GRAM})


def shrunk_hessian(
    weight: Tensor, keep: Callable[[], Tensor], stats: LayerStats, damping: Damping, shrinkage: Shrinkage
) -> DampedHessian:
    """Return the damped Hessian of a layer's input; arguments and errors as in `choose_regularisation`.

    Args:
        weight: float32 (out, in), dense.
        keep: gives a mask, bool (out, in); asked for `auto` alone.
        stats: of the layer's input.
        damping: as in `damped_hessian`, or `auto`.
        shrinkage: as in `damped_hessian`, or `auto`.

    Raises:
        MissingStatisticError: `gram`, or `gram_half` for `auto`, was not collected.
    """
    gram = stats.require(Stat.GRAM)
    if damping == "auto" or shrinkage == "auto":
        half = stats.require(Stat.GRAM_HALF)
        damping, shrinkage = choose_regularisation(weight, keep(), gram, half, damping, shrinkage, stats.layer)
    return damped_hessian(gram, damping, stats.layer, shrinkage=shrinkage)


def chosen(hessian: DampedHessian, damping: Damping, shrinkage: Shrinkage) -> dict[str, float]:
    """Return what of the settings of a Hessian, `auto` or given, chose itself, by name."""
    asked = {"damping": (damping, hessian.damping), "shrinkage": (shrinkage, hessian.shrinkage)}
    return {name: found for name, (setting, found) in asked.items() if setting == "auto"}


def choose_regularisation(
    weight: Tensor, keep: Tensor, gram: Tensor, half: Tensor, damping: Damping, shrinkage: Shrinkage, layer: str
) -> tuple[float, float]:
    """Return damping and shrinkage with which least squares on one half of the calibration lose least on the other.

    What is given stays. Some rows are solved on the first half with a shrinkage of 0.2 and a damping of 0.1, then with
    twice the shrinkage, as long as that lowers the loss on the second half, then likewise with twice the damping.
    Without a second half that tells anything both are the largest that is tried, with which hardly a weight changes.

    Args:
        weight: float32 (out, in), dense.
        keep: bool (out, in), True = kept: a mask such as the one that is to be updated.
        gram: `X X^T` over all tokens, float32 (in, in).
        half: the same over the first half of the tokens.
        damping: a number, or `auto`.
        shrinkage: a number, or `auto`.
        layer: the layer's name, for messages.

    Raises:
        NonFiniteError, ShapeMismatchError: as `damped_hessian`.
    """
    rows = torch.arange(0, len(weight), max(1, len(weight) // _ROWS), device=weight.device)
    other = gram - half
    least = (_LEAST_DAMPING if damping == "auto" else damping, _LEAST_SHRINKAGE if shrinkage == "auto" else shrinkage)
    free = [place for place, setting in ((1, shrinkage), (0, damping)) if setting == "auto"]
    if not bool(half.diagonal().any()) or not bool(other.diagonal().any()):
        most = [value * 2**_DOUBLED if place in free else value for place, value in enumerate(least)]
        return most[0], most[1]
    hessian = damped_hessian(half, 0.0, layer)
    seen = hessian.matrix.diagonal().clone()  # what a shrinkage is a share of
    kept = keep[rows] & ~hessian.dead
    weight = weight[rows].masked_fill(hessian.dead, 0.0)
    weight = weight / weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    removed = weight.masked_fill(kept, 0.0)
    scale = other.diagonal().mean()

    def lost(tried: tuple[float, float]) -> float:
        damped = (seen * (1 + tried[1]) + tried[0]).masked_fill_(hessian.dead, 1.0)
        hessian.matrix.diagonal().copy_(damped)
        target = matmul(removed, hessian.matrix)
        loss = torch.linalg.vecdot(removed, target)
        change = masked_cg(hessian.matrix, kept, target, loss, tolerance=1e-3, max_steps=_STEPS).values
        left = removed - change
        return float(torch.sum(matmul(left, other).div_(scale).mul_(left), dtype=torch.float64))

    best, least_lost = least, lost(least)
    for place in free:
        for _ in range(_DOUBLED):
            tried = (best[0] * 2, best[1]) if place == 0 else (best[0], best[1] * 2)
            if (found := lost(tried)) >= least_lost:
                break
            best, least_lost = tried, found
    return best
