"""QEP and LoaQ: aim a layer at what it, and the residual stream, were in the unpruned model (arXiv 2504.09629)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zpruner.corrections._base import Corrected, Correction
from zpruner.errors import SolverError
from zpruner.runtime.products import matmul
from zpruner.types import LayerStats, Stat

_MOST = 0.3
"""Of the correction; what the calibration itself would have is more, and fails on other text."""


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

    share: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = _MOST
    """How much of the correction is made; 0 leaves the weight as it is. auto: 0.3, and less where a correction found on
    half the calibration makes up for less of the other, layer by layer."""
    stream: float = Field(default=0.0, ge=0.0, le=1.0)
    """How much of what the residual stream has lost is aimed at, too."""
    damping: float = Field(default=1.0, gt=0.0)
    """Share of the mean of the Gram matrix's diagonal added to it."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that it reads: of the stream, and of half the tokens, only where a setting asks."""
        halves = {Stat.GRAM_HALF, Stat.CROSS_HALF} if self.share == "auto" else set()
        return self.needs | halves | ({Stat.DRIFT} if self.stream else set())

    def correct(self, weight: Tensor, stats: LayerStats) -> Corrected:
        """Return the corrected weight; see `Correction.correct`."""
        gram, cross = stats.require(Stat.GRAM), stats.require(Stat.CROSS)
        if not bool(gram.any()):  # no input, nothing to correct
            return Corrected(weight)
        chosen = {"share": self._supported(weight, stats)} if self.share == "auto" else {}
        lost = matmul(weight, cross - gram).mul_(self.share if self.share != "auto" else chosen["share"])
        if self.stream and stats.drift is not None:
            lost.add_(stats.drift, alpha=self.stream)
        return Corrected(weight + self._change(lost, gram, stats.layer), chosen)

    def _supported(self, weight: Tensor, stats: LayerStats) -> float:
        """Return the share, of what makes up for one half of the calibration, that loses least on the other.

        With a change D it is the s of `min ||W X_dense - (W + s D) X||^2` over the other half: a line.
        """
        gram, cross = stats.require(Stat.GRAM_HALF), stats.require(Stat.CROSS_HALF)
        if not bool(gram.any()):
            return 0.0
        change = self._change(matmul(weight, cross - gram), gram, stats.layer)
        gram, cross = stats.require(Stat.GRAM) - gram, stats.require(Stat.CROSS) - cross
        along = float(torch.sum(matmul(weight, cross - gram).mul_(change), dtype=torch.float64))
        size = float(torch.sum(matmul(change, gram).mul_(change), dtype=torch.float64))
        return min(max(along / size, 0.0), _MOST) if size > 0.0 else 0.0

    def _change(self, lost: Tensor, gram: Tensor, layer: str) -> Tensor:
        """Return `lost (gram + damping)^-1`, float32 (out, in): what puts outputs back, given their products with X."""
        damped = gram.clone()
        damped.diagonal().add_(self.damping * gram.diagonal().mean())
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            raise SolverError(
                f"correction of layer {layer}",
                "a Gram matrix that is not positive definite",
                "a positive definite one",
                f"Raise correct.damping above {self.damping:g}.",
            )
        return torch.cholesky_solve(lost.T, factor).T
