"""ADMM in few steps: ALPS' splitting (arXiv 2406.07831), over-relaxed, with one inverse of the Hessian."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.linalg import (
    Damping,
    Shrinkage,
    checked_cholesky,
    chosen,
    inverse,
    shrunk_hessian,
    statistics_for,
)
from zpruner.masks import select
from zpruner.methods._base import MaskSolver, Solution
from zpruner.methods._block import loudest, row_weights
from zpruner.runtime.products import matmul
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat

_TYPICAL = 0.8
"""Share of the geometric mean of the eigenvalues that counts as a typical one (loud directions lift the mean)."""
_LEAST = 0.1
"""Added to the diagonal where the geometric mean is taken: eigenvalues far below it do not matter."""
_BOLD = 1.37
"""How much longer than ALPS' step one may be: up to about this it helps, from 1.5 on the steps overshoot."""


class Admm(MaskSolver):
    """Find weights and support together, every step one product with the same inverse.

    ADMM on `min ||(W - D) X||^2`, D sparse, with the Hessian scaled to a unit diagonal:
    `V <- W + (rho (D - W) - Y) P`, `V' <- r V + (1 - r) D`, `D <- project(V' + Y / rho)`, `Y <- Y + rho (V' - D)`,
    with over-relaxation r (Eckstein & Bertsekas 1992), and rho rising only through the range in which the support
    moves, which is around a typical eigenvalue t of H. ALPS has `P = (H + rho I)^-1`, from an eigendecomposition; here
    it is `(t + shift) / (t + rho) (H + shift I)^-1`, the same in the typical direction (a preconditioned ADMM): one
    factorisation, and one product per step. Measured on trained layers, 12 steps reach what ALPS reaches in 55.

    With `effect` rows compete by what the decoder block puts out, `min sum_j r_j^2 ||(W - D)_j X||^2`, r_j being a
    power of how much output j counts in it. With `sensitivity` they compete by what the loss loses: r_j is a power of
    the norm of row j's gradient in the unpruned model (as rows are weighted in GuidedQuant, arXiv 2505.07004). With
    both, the powers are multiplied.

    The weights to put on the support are those of the update `least_squares` with the same damping and shrinkage.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 4

    damping: Damping = 0.01
    """Share of the mean of the Hessian's diagonal added to it; auto: 0.1, and more where two halves of the calibration
    demand it, layer by layer."""
    shrinkage: Shrinkage = "auto"
    """Share of each entry of the Hessian's diagonal added to itself: guards against fitting a small calibration.
    auto: 0.2, and more where two halves of the calibration demand it, layer by layer."""
    rho: float = Field(default=0.6, gt=0.0)
    """The first penalty on the distance between V and D, as a share of the typical eigenvalue."""
    growth: float = Field(default=5.0, gt=1.0)
    """The last penalty, as a multiple of the first; it rises by the same factor at every step."""
    steps: int = Field(default=12, ge=2)
    """Steps: more are slower and a little better."""
    relaxation: float = Field(default=1.7, ge=1.0, lt=2.0)
    """r above; 1 is plain ADMM."""
    effect: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much more the rows count that the block's output depends on: the power of the derivative's norm. 0 takes all
    rows alike. N:M, where weights compete inside a row, does not depend on it."""
    sensitivity: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much more the rows count that the loss depends on: the power of their gradient's norm. 1 weighs them by the
    Fisher information of their outputs, 0.5 generalises better; 0 takes all rows alike and needs no gradients. N:M,
    where weights compete inside a row, does not depend on it."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: derivatives, and those of half the tokens, only where a setting asks."""
        asked = {Stat.EFFECT: self.effect, Stat.GRAD_SQ: self.sensitivity}
        return statistics_for(self.damping, self.shrinkage) | {stat for stat, power in asked.items() if power}

    def solve(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Solution:
        """Return the mask, and the sparse weights D of the last step; errors as `MaskSolver.solve`."""
        pattern.check_width(weight.shape[1], stats.layer)
        hessian = shrunk_hessian(weight, lambda: loudest(weight, stats, pattern), stats, self.damping, self.shrinkage)
        root = hessian.matrix.diagonal().sqrt()
        rows = self._rows(stats, root.new_ones(1, 1))
        weight = weight.masked_fill(hessian.dead, 0.0) * root * rows
        # The mask does not depend on the scale, and scaled weights can neither overflow nor vanish.
        scale = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        weight = weight / scale
        matrix = hessian.take().div_(root).div_(root.unsqueeze(1))
        matrix.diagonal().add_(_LEAST)
        pivots = checked_cholesky(matrix, hessian).diagonal()
        typical = _TYPICAL * (math.exp(2 * float(pivots.double().log().mean())) - _LEAST)
        shift = _shift(hessian.shrinkage / (1.0 + hessian.shrinkage), typical, self.rho * self.growth * typical)
        matrix.diagonal().add_(shift - _LEAST)
        solver = inverse(matrix, hessian)

        def project(matrix: Tensor) -> Tensor:
            return select(matrix.abs(), pattern, ComparisonGroup.LAYER, stats.layer)

        sparse, dual, keep = weight * project(weight), torch.zeros_like(weight), None
        pull = torch.empty_like(weight)
        for count in range(self.steps):
            rho = typical * self.rho * self.growth ** (count / (self.steps - 1))
            step = (typical + shift) / (typical + rho)
            torch.sub(sparse, weight, out=pull).mul_(step * rho).sub_(dual, alpha=step)
            solved = matmul(pull, solver).add_(weight)
            shifted = solved.lerp_(sparse, 1.0 - self.relaxation).add_(dual, alpha=1.0 / rho)
            keep = project(shifted)
            torch.mul(shifted, keep, out=sparse)
            torch.sub(shifted, sparse, out=dual).mul_(rho)
        assert keep is not None
        return Solution(keep, sparse.mul_(scale).div_(root).div_(rows), chosen(hessian, self.damping, self.shrinkage))

    def _rows(self, stats: LayerStats, alike: Tensor) -> Tensor:
        """Return how much each row counts, float32 (out, 1); `alike` where no setting asks."""
        if self.effect:
            alike = alike * row_weights(stats.require(Stat.EFFECT), self.effect)
        if self.sensitivity:
            alike = alike * row_weights(stats.require(Stat.GRAD_SQ).double().sum(1), self.sensitivity)
        return alike


def _shift(least: float, typical: float, rho: float) -> float:
    """Return the least shift with which the last step is at most `_BOLD` times ALPS', at least 0.6 `typical`.

    The step is boldest in the direction of the smallest eigenvalue.

    Args:
        least: what no eigenvalue is below.
        typical: a typical eigenvalue.
        rho: of the last step.
    """
    most = _BOLD * (typical + rho) / (least + rho)  # of (typical + shift) / (least + shift)
    return max((typical - most * least) / (most - 1.0), 0.6 * typical) if most > 1.0 else 0.6 * typical
