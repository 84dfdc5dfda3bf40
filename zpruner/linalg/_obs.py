"""The optimal brain surgeon sweep of SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zpruner.linalg._hessian import DampedHessian, inverse_factor

ChooseMask = Callable[[Tensor, int], Tensor]
"""`choose(saliency, start) -> keep` for columns `start` and on: float32 (out, n) -> bool (out, n), True = kept."""

_UNIT = 16
"""Columns whose updates are carried out one by one before the rest of the block gets theirs in one product."""


def obs_sweep(
    weight: Tensor, hessian: DampedHessian, choose: ChooseMask, *, step: int, block_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Prune column after column, each time moving the later columns so that the outputs change least.

    The mask is asked for `step` columns at a time, when the earlier ones are settled: adaptively from the saliency
    `|w| / U_jj` of the updated weights (the root of the published one, which cannot overflow), or a fixed one that
    ignores it. Both take the same steps in the same order, so that repeating the sweep with the mask it chose gives
    the same weights.

    Args:
        weight: float32 (out, in), dense.
        hessian: of the layer's input; its matrix is taken (see `inverse_factor`).
        choose: called once per `step` columns, left to right.
        step: the number of columns decided together: the block for unstructured pruning, M for N:M.
        block_size: columns treated before the update reaches all later ones; rounded up to a multiple of `step`
            where it is larger. Changes rounding and cost, not the result, for a fixed mask.

    Returns:
        The weights, float32 (out, in), zero where pruned, and the mask, bool (out, in), True = kept.

    Raises:
        SolverError: the Hessian is not positive definite; names the layer and the damping to try.
    """
    upper = inverse_factor(hessian)
    pivots = upper.diagonal().unsqueeze(1)
    # Columns as contiguous rows: the sweep reads and writes whole columns.
    columns = weight.masked_fill(hessian.dead, 0.0).T.contiguous()
    keep = torch.ones_like(columns, dtype=torch.bool)
    error = torch.zeros_like(columns)
    width = len(columns)
    unit = _UNIT if step > _UNIT else step * max(1, _UNIT // step)
    block = max(block_size, step)
    block += -block % step

    def decide(start: int, stop: int) -> None:
        saliency = (columns[start:stop] / pivots[start:stop]).abs_()
        keep[start:stop] = choose(saliency.T, start).T

    def carry(start: int, stop: int, end: int) -> None:
        """Move the columns [stop, end) by the errors of [start, stop)."""
        if stop < end:
            columns[stop:end].addmm_(upper[start:stop, stop:end].T, error[start:stop], alpha=-1)

    def settle(start: int, stop: int, end: int) -> None:
        """Prune the columns [start, stop), whose mask is known; those up to `end` move with each of them."""
        gone = (~keep[start:stop]).to(columns.dtype)
        parts = (columns[start:stop], gone, pivots[start:stop], upper[start:stop], error[start:stop])
        # Rows taken apart together: a view of its own for each took as long as the arithmetic on it.
        for j, (column, off, pivot, row, wrong) in enumerate(
            zip(*(part.unbind() for part in parts), strict=True), start + 1
        ):
            torch.mul(column, off, out=wrong).div_(pivot)
            if j < end:
                columns[j:end].addr_(row[j:end], wrong, alpha=-1)

    for begin in range(0, width, block):
        end = min(begin + block, width)
        for window in range(begin, end, max(step, unit)):
            window_end = min(window + max(step, unit), end)
            if step > unit:
                decide(window, window_end)
            for start in range(window, window_end, unit):
                stop = min(start + unit, window_end)
                if step > unit:
                    settle(start, stop, stop)
                else:
                    for first in range(start, stop, step):
                        decide(first, min(first + step, stop))
                        settle(first, min(first + step, stop), stop)
                carry(start, stop, end)
        carry(begin, end, width)
    columns.mul_(keep)
    return columns.T.contiguous(), keep.T.contiguous()
