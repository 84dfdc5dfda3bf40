"""What every weight update is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.types import LayerStats


class WeightUpdate(Part, ABC):
    """Adjusts the kept weights of one layer for a fixed mask; the fields of a subclass are its settings."""

    @abstractmethod
    def update(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> Tensor:
        """Return the new weights: float32 (out, in), exactly zero where `keep` is False.

        Args:
            weight: float32 (out, in), dense.
            keep: bool (out, in), True = kept.
            stats: calibration statistics of the layer's input, on the weight's device.

        Raises:
            SolverError: a factorisation failed; names the layer and the damping to try.
        """
