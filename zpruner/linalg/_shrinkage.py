"""How far a Gram matrix is to be shrunk towards uncorrelated inputs, found from two halves of the calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
_TOGETHER = 2
"""Values that are tried at once: products with the same matrix take little longer for twice the rows."""
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
    plain = matmul(removed, hessian.matrix)
    scale = other.diagonal().mean()

    def lost(tried: Sequence[tuple[float, float]]) -> list[float]:
        """Return what each damping and shrinkage loses on the second half; all are solved together."""
        added = [(seen * shrinkage + damping).masked_fill_(hessian.dead, 0.0) for damping, shrinkage in tried]
        diagonals = torch.stack(added).repeat_interleave(len(removed), 0)
        gone = removed.repeat(len(tried), 1)
        target = plain.repeat(len(tried), 1).addcmul_(gone, diagonals)
        loss = torch.linalg.vecdot(gone, target)
        solution = masked_cg(
            hessian.matrix,
            kept.repeat(len(tried), 1),
            target,
            loss,
            tolerance=1e-3,
            max_steps=_STEPS,
            added=diagonals,
        )
        left = gone.sub_(solution.values)
        losses = matmul(left, other).div_(scale).mul_(left).view(len(tried), -1)
        return torch.sum(losses, 1, dtype=torch.float64).tolist()

    best, least_lost = least, float("inf")
    for number, place in enumerate(free):
        doubled = [_doubled(best, place, times) for times in range(min(number, 1), _DOUBLED + 1)]
        losses = (loss for low in range(0, len(doubled), _TOGETHER) for loss in lost(doubled[low : low + _TOGETHER]))
        for tried, found in zip(doubled, losses, strict=True):
            if found >= least_lost:
                break
            best, least_lost = tried, found
    return best


def _doubled(values: tuple[float, float], place: int, times: int) -> tuple[float, float]:
    factor = 2**times
    return (values[0] * factor, values[1]) if place == 0 else (values[0], values[1] * factor)
