"""What every pruning method is: a score from which masks are selected, or a solver that chooses the mask itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.quantization import Grid, QuantizedLayer
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern


class Method(Part, ABC):
    """What `score:` in params.yaml names. One subclass per file of this room; the file's name is the method's."""

    default_group: ClassVar[ComparisonGroup]
    """The comparison group of the published method."""


class PruningMethod(Method):
    """Scores the weights of one linear layer; the fields of a subclass are its hyper-parameters."""

    @abstractmethod
    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the importance of every weight.

        Args:
            weight: float32 (out, in).
            stats: calibration statistics of the layer's input, on the weight's device.

        Returns:
            float32 (out, in), finite, larger = keep.
        """


@dataclass(frozen=True)
class Solution:
    """What a solver found for one layer: the mask, bool (out, in), True = kept, and weights, float32 (out, in)."""

    keep: Tensor
    weight: Tensor
    """Exactly zero where pruned."""
    chosen: Mapping[str, float] = field(default_factory=dict)
    """What settings that are `auto` came to, by name."""


class MaskSolver(Method):
    """Chooses mask and weights of one linear layer together, for one pattern; the fields are its hyper-parameters."""

    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER

    @abstractmethod
    def solve(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Solution:
        """Return mask and weights.

        Args:
            weight: float32 (out, in).
            stats: calibration statistics of the layer's input, on the weight's device.
            pattern: what is removed.

        Raises:
            MissingStatisticError: a statistic that it reads was not collected.
            SolverError: no solution was found; names the layer and the setting to change.
            InvalidPatternError: M of N:M does not divide the number of inputs.
        """

    def same_as_update(self) -> tuple[str, Mapping[str, object]] | None:
        """Return name and settings of the weight update that gives, on this mask, the weights found; None: no update.

        A composition with that update takes the weights as they are.
        """
        return None

    def solve_on_grid(
        self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern, grid: Grid
    ) -> QuantizedLayer | None:
        """Return mask and quantised weights of one sweep that does both; None: weights are quantised afterwards.

        Asked only where `same_as_update` has a sweep that the rounding joins; arguments and errors as `solve`.
        """
        return None
