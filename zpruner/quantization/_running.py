"""Scales of groups that are found column after column, while the mask is still being chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.quantization._grid import Grid
from zpruner.quantization._scales import choose_scales

_AHEAD = 16
"""Groups' worth of columns that are looked ahead to fill a group."""


class RunningScales:
    """The scales for `zpruner.linalg.ColumnGrid` where a sweep chooses its own mask.

    A group's scale is chosen when its first weight is kept: from those of its weights that are known by then, and, for
    what is missing, from the weights that a sweep without a grid keeps in the columns that follow.

    Args:
        weight: float32 (out, in), of that sweep.
        keep: bool (out, in), of that sweep.
        grid: of the integers and groups.
        energy: the diagonal of the Hessian, float32 (in,).
    """

    def __init__(self, weight: Tensor, keep: Tensor, grid: Grid, energy: Tensor) -> None:
        self._weight, self._keep, self._grid, self._energy = weight, keep, grid, energy
        self._size = size = grid.size(weight.shape[1])
        groups = -(-weight.shape[1] // size)
        self._table = torch.zeros(len(weight), groups, dtype=grid.scale_dtype, device=weight.device)
        self._counts = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)

    def __call__(self, columns: Tensor, keep: Tensor, start: int) -> Tensor:
        """Return the scale of every weight in the columns `start` and on, whose mask is now known; see `ColumnGrid`."""
        position = self._counts.unsqueeze(1) + keep.cumsum(1) - 1
        known = -(-self._counts // self._size)  # groups that have a scale
        counts = self._counts + keep.sum(1)
        after = -(-counts // self._size)
        if bool((after > known).any()):
            self._choose(columns, keep, start, known, after)
        self._counts = counts
        group = torch.div(position, self._size, rounding_mode="floor").clamp_min_(0)
        return self._table.gather(1, group).float().masked_fill_(~keep, 0.0)

    def finish(self, keep: Tensor) -> Tensor:
        """Return the scales of all groups, (out, groups), once the mask (out, in) is complete."""
        counts = keep.sum(1)
        return self._table[:, : -(-int(counts.max()) // self._size)].contiguous() if len(counts) else self._table

    def _choose(self, columns: Tensor, keep: Tensor, start: int, known: Tensor, after: Tensor) -> None:
        """Put the scales of the groups [known, after) of each row into the table."""
        begin = start + columns.shape[1]
        end = begin + (_AHEAD * self._size if isinstance(self._grid.group, int) else self._weight.shape[1])
        expected = torch.cat([keep, self._keep[:, begin:end]], 1)
        weight = torch.cat([columns, self._weight[:, begin:end]], 1)
        energy = self._energy[start : start + weight.shape[1]]
        grid = self._grid
        taken = self._counts % self._size
        first = self._counts // self._size
        last = int((after - first).max())
        needed = (expected & ((taken.unsqueeze(1) + expected.cumsum(1) - 1) < last * self._size)).any(0)
        stop = int(needed.nonzero().max()) + 1
        found = choose_scales(weight[:, :stop], expected[:, :stop], grid, energy[:stop], taken)
        for local in range(last):
            new = ((first + local >= known) & (first + local < after)).nonzero().squeeze(1)
            self._table[new, first[new] + local] = found[new, local]
