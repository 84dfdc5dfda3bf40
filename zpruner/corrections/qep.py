"""QEP: aim a layer at what it put out in the unpruned model (arXiv 2504.09629)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.corrections._base import Correction
from zpruner.errors import SolverError
from zpruner.types import LayerStats, Stat


class Qep(Correction):
    """Moves a dense weight towards the least-squares answer to a changed input, before it is pruned.

    With earlier blocks pruned a layer reads X instead of X_dense. The weight that best gives W X_dense from X is
    `W + W (X_dense - X) X^T (X X^T + damping)^-1`; pruning that weight with the Hessian of X then makes up for errors
    of earlier blocks instead of keeping them (the same aim in quantisation: asymmetric calibration, GPTAQ,
    arXiv 2504.02692). The whole of it fits a small calibration set too closely and fails on other text; a share of it,
    strongly damped, generalises.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM, Stat.CROSS})
    workspace: ClassVar[int] = 3

    share: float = Field(default=0.3, ge=0.0, le=1.0)
    """How much of the correction is made; 0 leaves the weight as it is."""
    damping: float = Field(default=1.0, gt=0.0)
    """Share of the mean of the Gram matrix's diagonal added to it."""

    def correct(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the corrected weight; see `Correction.correct`."""
        gram, cross = stats.require(Stat.GRAM), stats.require(Stat.CROSS)
        mean = gram.diagonal().mean()
        if not bool(mean):  # no input, nothing to correct
            return weight
        damped = gram.clone()
        damped.diagonal().add_(self.damping * mean)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            raise SolverError(
                f"correction of layer {stats.layer}",
                "a Gram matrix that is not positive definite",
                "a positive definite one",
                f"Raise correct.damping above {self.damping:g}.",
            )
        change = weight @ (cross - gram)
        return weight + self.share * torch.cholesky_solve(change.T, factor).T
