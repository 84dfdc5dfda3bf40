"""Wanda: pruning by weights and activations (Sun et al. 2023, arXiv 2306.11695)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, Stat


class Wanda(PruningMethod):
    """A weight's importance is its size times the norm of the input it multiplies: `|W_ij| sqrt(a_j)`."""

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.ROW

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return `|W| sqrt(a)`: float32 (out, in).

        Raises:
            MissingStatisticError: `stats` has no sq_sum.
        """
        return (weight * stats.squared_norm().sqrt()).abs_()
