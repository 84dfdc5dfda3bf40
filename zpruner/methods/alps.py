"""ALPS: the support by the alternating direction method of multipliers (Meng et al. 2024, arXiv 2406.07831)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from zpruner.errors import SolverError
from zpruner.linalg import DampedHessian, damped_hessian
from zpruner.masks import select
from zpruner.methods._base import MaskSolver, Solution
from zpruner.runtime.products import matmul
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat

_SETTLED = 0.01
"""Distance of V and D, as a share of the weights' norm, below which a standing support stays: once the support
settles, the distance falls from 0.1 to 0.001 within about five steps."""


class Alps(MaskSolver):
    """Find weights and support together: alternate a ridge solve and a projection, tied closer at every step.

    ADMM on `min ||(W - D) X||^2`, D sparse, with the Hessian scaled to a unit diagonal and decomposed once:
    `V <- W + (rho (D - W) - Y)(H + rho I)^-1`, `D <- project(V + Y / rho)`, `Y <- Y + rho (V - D)`,
    `rho <- growth rho`, until the support stands still and V has come to D. The published weights are the update
    `least_squares` on this mask, with the same damping. The paper raises rho every third step, by a factor that
    depends on the changes; a constant factor per step gave the same loss (0.2 % less on six layers) in two thirds
    of the steps.

    The decomposition is float64, as its rounding is that of the loudest direction and a hard projection magnifies it;
    the steps are float32, and written in differences from W: solving for V itself, as the paper does, takes the small
    part of W H that matters from a large one. `benchmarks/agreement.py` has what each is worth.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 6

    damping: float = Field(default=0.01, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it."""
    shrinkage: float = Field(default=0.0, ge=0.0)
    """Share of each entry of the Hessian's diagonal added to itself: guards against fitting a small calibration."""
    rho: float = Field(default=0.1, gt=0.0)
    """The first penalty on the distance between V and D."""
    growth: float = Field(default=1.1, gt=1.0, le=2.0)
    """Factor of rho per step: nearer 1 is slower and a little better."""
    max_steps: int = Field(default=300, ge=1)
    """Steps at most."""

    def solve(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Solution:
        """Return the mask, and the sparse weights D of the last step.

        Raises:
            MissingStatisticError: `stats` has no gram.
            SolverError: the support still moved after `max_steps`, or the eigendecomposition failed.
            InvalidPatternError: M does not divide the number of inputs.
        """
        pattern.check_width(weight.shape[1], stats.layer)
        hessian = damped_hessian(stats.require(Stat.GRAM), self.damping, stats.layer, shrinkage=self.shrinkage)
        root = hessian.matrix.diagonal().sqrt()
        weight = weight.masked_fill(hessian.dead, 0.0) * root
        # The mask does not depend on the scale, and scaled weights can neither overflow nor vanish.
        scale = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        weight = weight / scale
        try:
            values, vectors = _decompose(hessian, root)
        except LinAlgError as error:
            raise _failed(stats.layer, str(error).splitlines()[0], "Check the calibration statistics.") from None

        def project(matrix: Tensor) -> Tensor:
            return select(matrix.abs(), pattern, ComparisonGroup.LAYER, stats.layer)

        keep = project(weight)
        sparse, dual, rho = weight * keep, torch.zeros_like(weight), self.rho
        norm = float(weight.norm())
        for _ in range(self.max_steps):
            pull = (sparse - weight).mul_(rho).sub_(dual)
            solved = matmul(matmul(pull, vectors).div_(values + rho), vectors.T).add_(weight)
            shifted = solved + dual / rho
            previous, keep = keep, project(shifted)
            sparse = shifted.mul_(keep)
            gap = solved.sub_(sparse)
            # The first support often stands for a step or more before the dual has grown enough to move it.
            if torch.equal(keep, previous) and float(gap.norm()) <= _SETTLED * norm:
                return Solution(keep, sparse.mul_(scale).div_(root))
            dual.add_(gap, alpha=rho)
            rho *= self.growth
        raise _failed(
            stats.layer,
            f"a support that still changed after {self.max_steps} steps",
            "Raise alps.max_steps or alps.growth.",
        )


def _decompose(hessian: DampedHessian, root: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (in,) and eigenvectors (in, in) of the Hessian scaled to a unit diagonal, as float32.

    Takes the Hessian's matrix; `root` (in,) is the root of its diagonal.
    """
    matrix = hessian.take().double().div_(root).div_(root.unsqueeze(1))
    # Laid out by columns, it is decomposed in its own memory.
    values, vectors = matrix.new_empty(len(matrix)), matrix.mT
    torch.linalg.eigh(vectors, out=(values, vectors))
    return values.clamp_min_(0.0).float(), vectors.float()


def _failed(layer: str, got: str, action: str) -> SolverError:
    return SolverError(f"ALPS of layer {layer}", got, "a settled support", action)
