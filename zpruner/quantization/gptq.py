"""GPTQ: round column after column, and let later columns make up for it (arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zpruner.linalg import DampedHessian, damped_hessian, obs_sweep
from zpruner.quantization._base import Rounding
from zpruner.quantization._columns import column_grid
from zpruner.quantization._grid import Grid
from zpruner.quantization._groups import per_weight
from zpruner.quantization._layer import QuantizedLayer
from zpruner.quantization._scales import choose_scales
from zpruner.types import LayerStats, Stat

_BLOCK = 128
_DAMPING = 0.1
"""On one half of the calibration's tokens, scored on the other, the least loss of 0.01 to 0.3 in 7 of 8 cases."""


class Gptq(Rounding):
    """The OBS sweep with the mask held fixed and kept weights put on the grid; with nothing pruned it is GPTQ.

    The scales are chosen before the sweep, from the weights as they are then.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 3

    order: Literal["natural", "activation"] | None = None
    """In which order columns are rounded: as they stand, or those with the most energy first, while there are still
    many to make up for them; null: activation, but natural where a solver's sweep rounds as it goes."""
    damping: float | None = Field(default=None, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it; null: 0.1, or the solver's where its sweep rounds."""
    shrinkage: float | None = Field(default=None, ge=0.0)
    """Share of each entry of the diagonal added to itself; null: 0, or the solver's where its sweep rounds."""

    def round(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> QuantizedLayer:
        """Return integers and scales; see `Rounding.round`. Weights of inputs never seen go to the nearest."""
        damping = _DAMPING if self.damping is None else self.damping
        shrinkage = self.shrinkage or 0.0
        hessian = damped_hessian(stats.require(Stat.GRAM), damping, stats.layer, shrinkage=shrinkage)
        energy = hessian.matrix.diagonal().clone()
        dead = hessian.dead
        scales = choose_scales(weight, keep, self.grid, energy)
        each = per_weight(scales, keep, self.grid)
        if self.order == "natural":
            found = _sweep(weight, keep, each, hessian, self.grid)
        else:
            order = energy.argsort(descending=True, stable=True)
            matrix = hessian.take()[order.unsqueeze(1), order]
            reordered = DampedHessian(matrix, dead[order], damping, stats.layer, shrinkage)
            swept = _sweep(weight[:, order], keep[:, order], each[:, order], reordered, self.grid)
            found = torch.empty_like(swept)
            found[:, order] = swept
        found = torch.where(dead, weight, found)
        return QuantizedLayer.nearest(stats.layer, found, scales, keep, self.grid)

    def joins(self, sweep: Mapping[str, object]) -> bool:
        """Return whether the sweep may have its own Hessian, or has this one, and takes the columns as they stand."""
        asked = {"damping": self.damping, "shrinkage": self.shrinkage}
        same = all(value is None or sweep.get(name) == value for name, value in asked.items())
        return same and self.order != "activation"


def _sweep(weight: Tensor, keep: Tensor, each: Tensor, hessian: DampedHessian, grid: Grid) -> Tensor:
    """Return the weights of the OBS sweep with mask and scales held fixed, `each` being the scale of every weight."""

    def choose(saliency: Tensor, start: int) -> Tensor:
        return keep[:, start : start + saliency.shape[1]]

    def scales(columns: Tensor, _: Tensor, start: int) -> Tensor:
        return each[:, start : start + columns.shape[1]]

    columns = column_grid(grid, scales)
    return obs_sweep(weight, hessian, choose, step=_BLOCK, block_size=_BLOCK, grid=columns)[0]
