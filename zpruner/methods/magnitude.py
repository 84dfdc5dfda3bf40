"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat


class Magnitude(PruningMethod):
    """A weight's importance is its absolute value: `|W_ij|`."""

    needs: ClassVar[frozenset[Stat]] = frozenset()
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER

    def score(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern | None = None) -> Tensor:
        """Return `|W|`: float32 (out, in)."""
        return weight.abs()
