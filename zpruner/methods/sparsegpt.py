"""SparseGPT: a mask chosen while the weights are updated (Frantar & Alistarh 2023, arXiv 2301.00774)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from zpruner.linalg import damped_hessian, obs_sweep
from zpruner.methods._base import PruningMethod
from zpruner.methods._block import keep_in_block, required_pattern
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat


class SparseGPT(PruningMethod):
    """Prune blocks of columns left to right, by `w^2 / U_jj^2` of weights that carry the compensation so far.

    The weights of the published method are those of the update `obs` on this mask, with the same damping.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 2
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER
    depends_on_pattern: ClassVar[bool] = True

    block_size: int = Field(default=128, ge=1)
    """Columns whose weights compete under unstructured pruning."""
    damping: float = Field(default=0.01, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it."""

    def score(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern | None = None) -> Tensor:
        """Return 1 for kept and 0 for pruned weights: float32 (out, in).

        Raises:
            MissingStatisticError: `stats` has no gram.
            SolverError: the Hessian is singular; names the layer and the damping to try.
            InvalidPatternError: M does not divide the number of inputs.
        """
        pattern = required_pattern(pattern, weight.shape[1], stats.layer)
        hessian = damped_hessian(stats.require(Stat.GRAM), self.damping, stats.layer)

        def choose(saliency: Tensor, start: int) -> Tensor:
            return keep_in_block(saliency, start, pattern, stats.layer)

        step = pattern.group_size or self.block_size
        return obs_sweep(weight, hessian, choose, step=step, block_size=self.block_size)[1].float()
