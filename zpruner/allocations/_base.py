"""What every allocation is: how a composition spreads the sparsity over the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from zpruner.allocations._exact import allocate, check_ratio
from zpruner.parts.registry import Part
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern

Unpruned = Callable[[str], tuple[Tensor, LayerStats]]
"""Given a layer's name, returns its weight, float (out, in), and statistics in the unpruned model."""


class Allocation(Part, ABC):
    """Gives every layer a sparsity of its own; all layers together have exactly the one asked for.

    Where every row is to lose as many weights as its neighbours (`group: row`), the counts are whole rows', and the
    sum is the nearest below.
    """

    def patterns(
        self,
        pattern: SparsityPattern,
        group: ComparisonGroup,
        shapes: Mapping[str, tuple[int, int]],
        blocks: Mapping[str, int],
        unpruned: Unpruned,
    ) -> dict[str, SparsityPattern]:
        """Return the pattern of every layer.

        Args:
            pattern: a ratio, of all layers together.
            group: the comparison group of the selection; with `row` the counts are multiples of a layer's rows.
            shapes: (out, in) of every layer.
            blocks: decoder block of every layer.
            unpruned: gives weight and statistics of a layer; the statistics are those in `needs`, or more.

        Raises:
            InvalidPatternError: an N:M pattern, which fixes every layer's sparsity.
            InvalidSettingError: targets that cannot be met.
        """
        self.check(pattern)
        return allocate(self.targets(pattern.sparsity, shapes, blocks, unpruned), shapes, pattern, group)

    def check(self, pattern: SparsityPattern) -> None:
        """Raise what no model can change.

        Raises:
            InvalidPatternError: an N:M pattern, which fixes every layer's sparsity.
            InvalidSettingError: targets that would leave [0, 1).
        """
        check_ratio(pattern)

    @abstractmethod
    def targets(
        self,
        sparsity: float,
        shapes: Mapping[str, tuple[int, int]],
        blocks: Mapping[str, int],
        unpruned: Unpruned,
    ) -> dict[str, float]:
        """Return the sparsity wanted of every layer; arguments as in `patterns`."""


def saliency(weight: Tensor, stats: LayerStats) -> Tensor:
    """Return |W| sqrt(a), float32 (out, in), of which published allocations take their measure."""
    return weight.float().abs() * stats.squared_norm().sqrt()
