"""SparseGPT: a mask chosen while the weights are updated (Frantar & Alistarh 2023, arXiv 2301.00774)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from zpruner.linalg import ColumnGrid, Damping, Shrinkage, chosen, obs_sweep, shrunk_hessian, statistics_for
from zpruner.methods._base import MaskSolver, Solution
from zpruner.methods._block import keep_in_block, loudest
from zpruner.quantization import Grid, QuantizedLayer, RunningScales, column_grid
from zpruner.types import LayerStats, SparsityPattern, Stat


class SparseGPT(MaskSolver):
    """Prune blocks of columns left to right, by `w^2 / U_jj^2` of weights that carry the compensation so far.

    The published method is this with the update `obs` of the same settings: the weights of the same sweep.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 2

    block_size: int = Field(default=128, ge=1)
    """Columns whose weights compete under unstructured pruning."""
    damping: Damping = 0.01
    """Share of the mean of the Hessian's diagonal added to it; auto: 0.1, and more where two halves of the calibration
    demand it, layer by layer."""
    shrinkage: Shrinkage = 0.0
    """Share of each entry of the Hessian's diagonal added to itself; auto: 0.2, and more where two halves of the
    calibration demand it, layer by layer."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: those of half the tokens only to choose how far to regularise."""
        return statistics_for(self.damping, self.shrinkage)

    def solve(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Solution:
        """Return mask and weights of one sweep; errors as `MaskSolver.solve`."""
        found, keep, regularisation = self._sweep(weight, stats, pattern)
        return Solution(keep, found, regularisation)

    def solve_on_grid(
        self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern, grid: Grid
    ) -> QuantizedLayer | None:
        """Return mask and quantised weights of one sweep (section 3.5 of the paper).

        Before it a sweep without a grid says what weights to expect in the groups that scales are chosen for.
        """
        expected, kept, _ = self._sweep(weight, stats, pattern)
        scales = RunningScales(expected, kept, grid, stats.require(Stat.GRAM).diagonal())
        found, keep, _ = self._sweep(weight, stats, pattern, column_grid(grid, scales))
        return QuantizedLayer.nearest(stats.layer, found, scales.finish(keep), keep, grid)

    def _sweep(
        self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern, grid: ColumnGrid | None = None
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return weights, mask, and what of the Hessian's regularisation chose itself."""
        pattern.check_width(weight.shape[1], stats.layer)
        hessian = shrunk_hessian(weight, lambda: loudest(weight, stats, pattern), stats, self.damping, self.shrinkage)

        def choose(saliency: Tensor, start: int) -> Tensor:
            return keep_in_block(saliency, start, pattern, stats.layer)

        regularisation = chosen(hessian, self.damping, self.shrinkage)
        step = pattern.group_size or self.block_size
        found, keep = obs_sweep(weight, hessian, choose, step=step, block_size=self.block_size, grid=grid)
        return found, keep, regularisation

    def same_as_update(self) -> tuple[str, Mapping[str, object]] | None:
        """Return `obs` with the settings of this sweep; what chooses itself would choose otherwise on its mask."""
        if "auto" in (self.damping, self.shrinkage):
            return None
        return "obs", {"damping": self.damping, "shrinkage": self.shrinkage, "block_size": self.block_size}
