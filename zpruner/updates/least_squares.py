"""Joint compensation for a fixed mask: least squares, by steps within 1 % of the least loss or factorised exactly."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from zpruner.linalg import Damping, Shrinkage, Solver, least_squares, shrunk_hessian, statistics_for
from zpruner.types import LayerStats, Stat
from zpruner.updates._base import WeightUpdate


class LeastSquares(WeightUpdate):
    """The weights on the mask that change the layer's outputs least: `w'_K = (w H)_K (H_KK)^-1` per row.

    APT's compensation of all pruned weights at once (arXiv 2410.15567), and ALPS's last step (arXiv 2406.07831).
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 2

    solver: Literal["auto", "cholesky", "cg"] = "auto"
    """auto: conjugate gradients or one factorisation per row, whichever costs less."""
    damping: Damping = 0.01
    """Share of the mean of the Hessian's diagonal added to it; auto: 0.1, and more where two halves of the calibration
    demand it, layer by layer."""
    shrinkage: Shrinkage = 0.0
    """Share of each entry of the Hessian's diagonal added to itself: guards against fitting a small calibration.
    auto: 0.2, and more where two halves of the calibration demand it, layer by layer."""
    steps: int = Field(default=200, ge=1)
    """Conjugate gradient steps at most."""
    tolerance: float = Field(default=1e-3, gt=0.0, lt=1.0)
    """Conjugate gradients stop at a step that lowers the loss by at most this share of it; measured on five layers,
    0.001 leaves 0.4 to 0.7 % more loss than the minimum."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: those of half the tokens only to choose how far to regularise."""
        return statistics_for(self.damping, self.shrinkage)

    def update(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> Tensor:
        """Return the new weights: float32 (out, in), exactly zero where `keep` is False.

        Raises:
            MissingStatisticError: `stats` has no gram.
            SolverError: a factorisation failed, or the steps did not suffice; names the layer and what to change.
        """
        hessian = shrunk_hessian(weight, lambda: keep, stats, self.damping, self.shrinkage)
        solver = Solver(self.solver)
        return least_squares(weight, keep, hessian, solver=solver, tolerance=self.tolerance, max_steps=self.steps)
