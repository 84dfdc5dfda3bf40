"""What every mask refinement is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.types import LayerStats, SparsityPattern


class MaskRefinement(Part, ABC):
    """Improves a mask without changing how many weights it keeps; the fields are its settings."""

    @abstractmethod
    def refine(self, weight: Tensor, keep: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Tensor:
        """Return the better mask: bool (out, in), True = kept, with `keep`'s count in every row (or N:M group).

        Args:
            weight: float32 (out, in), dense.
            keep: bool (out, in).
            stats: calibration statistics of the layer's input, on the weight's device.
            pattern: the pattern that `keep` satisfies.
        """
