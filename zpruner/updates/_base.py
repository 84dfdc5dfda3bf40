"""What every weight update is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from zpruner.types import LayerStats, Stat


class WeightUpdate(BaseModel, ABC):
    """Adjusts the kept weights of one layer for a fixed mask; the fields of a subclass are its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    needs: ClassVar[frozenset[Stat]]
    workspace: ClassVar[int] = 0
    """Square float32 matrices of the input's width that `update` holds at once, beside the statistics."""

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
