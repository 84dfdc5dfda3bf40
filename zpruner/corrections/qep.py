"""QEP and LoaQ: aim a layer at what it, and the residual stream, were in the unpruned model (arXiv 2504.09629)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.corrections._base import Correction
from zpruner.errors import SolverError
from zpruner.runtime.products import matmul
from zpruner.types import LayerStats, Stat


class Qep(Correction):
    """Moves a dense weight towards the least-squares answer to a changed input, before it is pruned.

    With earlier blocks pruned a layer reads X instead of X_dense. The weight that best gives W X_dense from X is
    `W + W (X_dense - X) X^T (X X^T + damping)^-1`; pruning that weight with the Hessian of X then makes up for errors
    of earlier blocks instead of keeping them (the same aim in quantisation: asymmetric calibration, GPTAQ,
    arXiv 2504.02692). The whole of it fits a small calibration set too closely and fails on other text; a share of it,
    strongly damped, generalises.

    Where the layer's output is added to the residual stream H as it is, a share of what the stream has lost by then,
    H_dense - H, can be made up for by the same least squares (LoaQ, arXiv 2509.06297):
    `W + [share W (X_dense - X) + stream (H_dense - H)] X^T (X X^T + damping)^-1`.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM, Stat.CROSS})
    workspace: ClassVar[int] = 3

    share: float = Field(default=0.3, ge=0.0, le=1.0)
    """How much of the correction is made; 0 leaves the weight as it is."""
    stream: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much of what the residual stream has lost is aimed at, too."""
    damping: float = Field(default=1.0, gt=0.0)
    """Share of the mean of the Gram matrix's diagonal added to it."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: of the residual stream only where it is aimed at."""
        return self.needs | {Stat.DRIFT} if self.stream else self.needs

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
        change = matmul(weight, cross - gram).mul_(self.share)
        if self.stream and stats.drift is not None:
            change.add_(stats.drift, alpha=self.stream)
        return weight + torch.cholesky_solve(change.T, factor).T
