"""Magnitude pruning (Han et al. 2015, arXiv 1506.02626)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats


class Magnitude(PruningMethod):
    """A weight's importance is its absolute value: `|W_ij|`."""

    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return `|W|`: float32 (out, in)."""
        return weight.abs()
