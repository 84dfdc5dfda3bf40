"""How a composition spreads the sparsity over the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from zpruner.masks._allocate import (
    allocate,
    check_ratio,
    check_spread,
    outlier_share,
    outlier_targets,
    table_targets,
)
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern


class Allocation(BaseModel, ABC):
    """Gives every layer a sparsity of its own; all layers together have exactly the one asked for.

    Where every row is to lose as many weights as its neighbours (`group: row`), the counts are whole rows', and the
    sum is the nearest below.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    def patterns(
        self,
        pattern: SparsityPattern,
        group: ComparisonGroup,
        shapes: Mapping[str, tuple[int, int]],
        blocks: Mapping[str, int],
        saliency: Callable[[str], Tensor],
    ) -> dict[str, SparsityPattern]:
        """Return the pattern of every layer.

        Args:
            pattern: a ratio, of all layers together.
            group: the comparison group of the selection; with `row` the counts are multiples of a layer's rows.
            shapes: (out, in) of every layer.
            blocks: decoder block of every layer.
            saliency: given a layer's name, returns `outlier_saliency` of it, float (out, in).

        Raises:
            InvalidPatternError: an N:M pattern, which fixes every layer's sparsity.
            InvalidSettingError: targets that cannot be met.
        """
        self.check(pattern)
        return allocate(self.targets(pattern.sparsity, shapes, blocks, saliency), shapes, pattern, group)

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
        saliency: Callable[[str], Tensor],
    ) -> dict[str, float]:
        """Return the sparsity wanted of every layer; arguments as in `patterns`."""


class Owl(Allocation):
    """Blocks with more outliers among |W| sqrt(a) keep more (OWL, arXiv 2310.05175).

    The paper's bound holds: no block deviates by more than `spread`. Its code stretches the range from the least to
    the most to twice that, so that a single block can deviate by more.
    """

    spread: float = Field(default=0.08, ge=0.0, lt=1.0)
    """Largest deviation of a block's sparsity; lambda in the paper."""
    multiple: float = Field(default=5.0, gt=1.0)
    """Outliers are above this multiple of the block's mean; M in the paper."""

    def check(self, pattern: SparsityPattern) -> None:
        """Raise what no model can change; see `Allocation.check`."""
        check_spread(self.spread, check_ratio(pattern))

    def targets(
        self,
        sparsity: float,
        shapes: Mapping[str, tuple[int, int]],
        blocks: Mapping[str, int],
        saliency: Callable[[str], Tensor],
    ) -> dict[str, float]:
        """Return one sparsity per block."""
        shares = {
            block: outlier_share([saliency(name) for name in shapes if blocks[name] == block], self.multiple)
            for block in sorted(set(blocks.values()))
        }
        return outlier_targets({name: shares[blocks[name]] for name in shapes}, shapes, sparsity, self.spread)


class Table(Allocation):
    """An explicit sparsity for the layers that a name pattern fits; the others take what is left."""

    sparsities: dict[str, float]
    """Shell-style pattern of layer names -> sparsity, e.g. `{"*.down_proj": 0.4}`; the first that fits counts."""

    def targets(
        self,
        sparsity: float,
        shapes: Mapping[str, tuple[int, int]],
        blocks: Mapping[str, int],
        saliency: Callable[[str], Tensor],
    ) -> dict[str, float]:
        """Return the table's sparsities, and the remainder's."""
        return table_targets(self.sparsities, shapes, sparsity)


ALLOCATIONS: dict[str, type[Allocation]] = {"owl": Owl, "table": Table}


def outlier_saliency(weight: Tensor, stats: LayerStats) -> Tensor:
    """Return |W| sqrt(a), float32 (out, in): what OWL counts outliers of."""
    return weight.float().abs() * stats.squared_norm().sqrt()
