"""What every correction is: the weight that scores, masks and updates start from, under pruned propagation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.types import LayerStats


@dataclass(frozen=True)
class Corrected:
    """What a correction makes of one layer: the weight, float32 (out, in)."""

    weight: Tensor
    chosen: Mapping[str, float] = field(default_factory=dict)
    """What settings that are `auto` came to, by name."""


class Correction(Part, ABC):
    """Makes up for what earlier pruned blocks changed in a layer's input; the fields are its settings."""

    @abstractmethod
    def correct(self, weight: Tensor, stats: LayerStats) -> Corrected:
        """Return the corrected weight.

        Args:
            weight: float32 (out, in), dense.
            stats: of the layer's input in the half-pruned model, with those that set it against the unpruned one.

        Raises:
            MissingStatisticError: a statistic that it reads was not collected.
            SolverError: the damped Gram matrix is singular; names the layer.
        """
