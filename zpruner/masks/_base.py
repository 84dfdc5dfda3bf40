"""What every mask refinement is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from zpruner.types import LayerStats, SparsityPattern, Stat


class MaskRefinement(BaseModel, ABC):
    """Improves a mask without changing how many weights it keeps; the fields are its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    needs: ClassVar[frozenset[Stat]]
    workspace: ClassVar[int] = 0
    """Square float32 matrices of the input's width that `refine` holds at once, beside the statistics."""

    @abstractmethod
    def refine(self, weight: Tensor, keep: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Tensor:
        """Return the better mask: bool (out, in), True = kept, with `keep`'s count in every row (or N:M group).

        Args:
            weight: float32 (out, in), dense.
            keep: bool (out, in).
            stats: calibration statistics of the layer's input, on the weight's device.
            pattern: the pattern that `keep` satisfies.
        """
