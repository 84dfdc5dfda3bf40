"""A grid as the OBS sweep takes it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from zpruner.linalg import ColumnGrid
from zpruner.quantization._grid import Grid, nearest_integers


def column_grid(grid: Grid, scales: Callable[[Tensor, Tensor, int], Tensor]) -> ColumnGrid:
    """Return the grid for `obs_sweep`, given what finds the scales (see `ColumnGrid`)."""

    def value(weight: Tensor, scale: Tensor) -> Tensor:
        return nearest_integers(weight, scale, grid).mul_(scale)

    return ColumnGrid(scales, value)
