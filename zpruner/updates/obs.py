"""The OBS sweep with the mask held fixed: SparseGPT's update and Z-Pruner's reconstruction."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from zpruner.linalg import Damping, Shrinkage, obs_sweep, shrunk_hessian, statistics_for
from zpruner.types import LayerStats, Stat
from zpruner.updates._base import WeightUpdate


class Obs(WeightUpdate):
    """Column after column, let the later columns make up for what is pruned (arXiv 2301.00774).

    On the mask of the method `sparsegpt`, with the same damping, it gives the weights of that method's own sweep.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 2

    damping: Damping = 0.01
    """Share of the mean of the Hessian's diagonal added to it; auto: 0.1, and more where two halves of the calibration
    demand it, layer by layer."""
    shrinkage: Shrinkage = 0.0
    """Share of each entry of the Hessian's diagonal added to itself; auto: 0.2, and more where two halves of the
    calibration demand it, layer by layer."""
    block_size: int = Field(default=128, ge=1)
    """Columns treated before the update reaches all later ones: a matter of speed."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: those of half the tokens only to choose how far to regularise."""
        return statistics_for(self.damping, self.shrinkage)

    def update(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> Tensor:
        """Return the new weights: float32 (out, in), exactly zero where `keep` is False.

        Raises:
            MissingStatisticError: `stats` has no gram.
            SolverError: the Hessian is singular; names the layer and the damping to try.
        """
        hessian = shrunk_hessian(weight, lambda: keep, stats, self.damping, self.shrinkage)

        def fixed(saliency: Tensor, start: int) -> Tensor:
            return keep[:, start : start + saliency.shape[1]]

        return obs_sweep(weight, hessian, fixed, step=self.block_size, block_size=self.block_size)[0]
