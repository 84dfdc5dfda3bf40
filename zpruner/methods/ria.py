"""RIA: relative importance and activations (Zhang et al., ICLR 2024, "Plug-and-Play")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, Stat


class Ria(PruningMethod):
    """A weight's importance is its share of its column and of its row, times the input norm to a power.

    `(|W_ij| / sum_i |W_ij| + |W_ij| / sum_j |W_ij|) * sqrt(a_j)^activation_power`; weights of a zero row or column
    score 0.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER
    renamed: ClassVar[Mapping[str, str]] = {"power": "activation_power"}

    activation_power: float = Field(default=0.5, ge=0.0, le=4.0)
    """The exponent of the input norm `sqrt(a_j)`; 0 leaves the activations out."""

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the relative importance times activation: float32 (out, in).

        Raises:
            MissingStatisticError: `stats` has no sq_sum.
        """
        size = weight.abs()
        share = size / _divisor(size, dim=0)
        share += size.div_(_divisor(size, dim=1))
        return share.mul_(stats.squared_norm().double().pow(self.activation_power / 2).float())


def _divisor(size: Tensor, dim: int) -> Tensor:
    """Return the sums along `dim`, kept as a dimension, with 1 for those of zero rows or columns."""
    total = size.sum(dim=dim, keepdim=True)
    return total.masked_fill(total == 0, 1.0)
