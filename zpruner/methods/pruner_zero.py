"""Pruner-Zero (arXiv 2406.02924): the published best formula of its search."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.methods.expression import Expression
from zpruner.types import ComparisonGroup, LayerStats, Stat

FORMULA = "mul(abs(mul(W, W)), mms(G))"


class PrunerZero(PruningMethod):
    """Score `W^2 * mms(G)`, with G the gradient norm scaled to [0, 1] over the matrix."""

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAD_SQ})
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.ROW

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the importance of every weight: float32 (out, in); errors as `Expression.score`."""
        return Expression(formula=FORMULA).score(weight, stats)
