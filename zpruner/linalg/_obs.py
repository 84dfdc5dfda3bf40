"""The optimal brain surgeon sweep of SparseGPT (arXiv 2301.00774), which with a grid is that of GPTQ (2210.17323)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.linalg._hessian import DampedHessian, inverse_factor
from zpruner.runtime.products import add_matmul

ChooseMask = Callable[[Tensor, int], Tensor]
"""`choose(saliency, start) -> keep` for columns `start` and on: float32 (out, n) -> bool (out, n), True = kept."""


@dataclass(frozen=True)
class ColumnGrid:
    """The values that kept weights may take.

    Attributes:
        scales: `scales(columns, keep, start)` is called as soon as the mask of the columns `start` and on is known,
            with their weights as they are by then, float32 (out, n), and the mask, bool (out, n). It returns the scale
            of every weight, float32 (out, n), 0 where pruned.
        nearest: `nearest(weight, scale)` returns the value to take, float32 (out,), 0 where the scale is.
    """

    scales: Callable[[Tensor, Tensor, int], Tensor]
    nearest: Callable[[Tensor, Tensor], Tensor]


_UNIT = 16
"""Columns whose updates are carried out one by one before the rest of the block gets theirs in one product."""


def obs_sweep(
    weight: Tensor,
    hessian: DampedHessian,
    choose: ChooseMask,
    *,
    step: int,
    block_size: int = 128,
    grid: ColumnGrid | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune column after column, each time moving the later columns so that the outputs change least.

    With a grid kept weights take its values, and the later columns make up for that, too. What a column that is yet to
    be pruned gets by then is handed on from it: all error ends in later kept weights.

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
        grid: of the kept weights; None: they stay as the sweep leaves them.

    Returns:
        The weights, float32 (out, in), on the grid and zero where pruned, and the mask, bool (out, in), True = kept.

    Raises:
        SolverError: the Hessian is not positive definite; names the layer and the damping to try.
    """
    upper = inverse_factor(hessian)
    pivots = upper.diagonal().unsqueeze(1)
    # Columns as contiguous rows: the sweep reads and writes whole columns.
    columns = weight.masked_fill(hessian.dead, 0.0).T.contiguous()
    keep = torch.ones_like(columns, dtype=torch.bool)
    error = torch.zeros_like(columns)
    scales = torch.empty_like(columns) if grid is not None else None
    width = len(columns)
    unit = _UNIT if step > _UNIT else step * max(1, _UNIT // step)
    block = max(block_size, step)
    block += -block % step

    def decide(start: int, stop: int) -> None:
        saliency = (columns[start:stop] / pivots[start:stop]).abs_()
        keep[start:stop] = choose(saliency.T, start).T
        if grid is not None and scales is not None:
            scales[start:stop] = grid.scales(columns[start:stop].T, keep[start:stop].T, start).T

    def carry(start: int, stop: int, end: int) -> None:
        """Move the columns [stop, end) by the errors of [start, stop)."""
        if stop < end:
            add_matmul(columns[stop:end], upper[start:stop, stop:end].T, error[start:stop], alpha=-1)

    def settle(start: int, stop: int, end: int) -> None:
        """Prune the columns [start, stop), whose mask is known; those up to `end` move with each of them."""
        along = (~keep[start:stop]).to(columns.dtype) if scales is None else scales[start:stop]
        parts = (columns[start:stop], along, pivots[start:stop], upper[start:stop], error[start:stop])
        # Rows taken apart together: a view for each took as long as the arithmetic on it.
        for j, (column, factor, pivot, row, wrong) in enumerate(
            zip(*(part.unbind() for part in parts), strict=True), start + 1
        ):
            if grid is None:
                torch.mul(column, factor, out=wrong).div_(pivot)
            else:
                value = grid.nearest(column, factor)
                torch.sub(column, value, out=wrong).div_(pivot)
                column.copy_(value)
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
