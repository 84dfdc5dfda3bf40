"""What every allocation is: how a composition spreads the sparsity over the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from zpruner.allocations._exact import allocate, check_ratio
from zpruner.parts.registry import Part
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern


@dataclass(frozen=True)
class Unpruned:
    """The layers of a model before it is pruned.

    Attributes:
        shapes: (out, in) of every layer.
        blocks: decoder block of every layer.
        layer: gives weight, float (out, in), and statistics of a layer; these are those in `needs`, or more.
    """

    shapes: Mapping[str, tuple[int, int]]
    blocks: Mapping[str, int]
    layer: Callable[[str], tuple[Tensor, LayerStats]]

    def by_block(self, measure: Callable[[list[Tensor]], float]) -> dict[str, float]:
        """Return layer -> what `measure` makes of the saliencies of its block, each float32 (out, in)."""
        found = {
            block: measure([saliency(*self.layer(name)) for name in self.shapes if self.blocks[name] == block])
            for block in sorted(set(self.blocks.values()))
        }
        return {name: found[self.blocks[name]] for name in self.shapes}


class Allocation(Part, ABC):
    """Gives every layer its own sparsity; all layers together have exactly the one asked for.

    Where every row is to lose as many weights as its neighbours (`group: row`), the counts are whole rows', and the
    sum is the nearest below.
    """

    def patterns(self, pattern: SparsityPattern, group: ComparisonGroup, model: Unpruned) -> dict[str, SparsityPattern]:
        """Return the pattern of every layer.

        Args:
            pattern: a ratio, of all layers together.
            group: the comparison group of the selection; with `row` the counts are multiples of a layer's rows.
            model: its layers.

        Raises:
            InvalidPatternError: an N:M pattern, which fixes every layer's sparsity.
            InvalidSettingError: targets that cannot be met.
        """
        self.check(pattern)
        return allocate(self.targets(pattern.sparsity, model), model.shapes, pattern, group)

    def check(self, pattern: SparsityPattern) -> None:
        """Raise what no model can change.

        Raises:
            InvalidPatternError: an N:M pattern, which fixes every layer's sparsity.
            InvalidSettingError: targets that would leave [0, 1).
        """
        check_ratio(pattern)

    @abstractmethod
    def targets(self, sparsity: float, model: Unpruned) -> dict[str, float]:
        """Return the sparsity wanted of every layer, for one of all layers together."""


def saliency(weight: Tensor, stats: LayerStats) -> Tensor:
    """Return |W| sqrt(a), float32 (out, in), of which published allocations take their measure."""
    return weight.float().abs() * stats.squared_norm().sqrt()
