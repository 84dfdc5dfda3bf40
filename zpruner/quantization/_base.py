"""What every way of rounding is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.quantization._grid import Bits, Grid, Group
from zpruner.quantization._layer import QuantizedLayer
from zpruner.types import LayerStats


class Rounding(Part, ABC):
    """Puts the kept weights of one layer on a grid; the fields of a subclass are its settings besides."""

    bits: Bits
    """Of an integer: 8, 4 or 3."""
    group: Group | None = Field(default=None)
    """How many consecutive kept weights of a row share a scale: row, 128 or 32; null: row for 8 bits, 32 for fewer."""

    @property
    def grid(self) -> Grid:
        """The values that weights can take."""
        return Grid(self.bits, self.group or ("row" if self.bits == 8 else 32))

    @abstractmethod
    def round(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> QuantizedLayer:
        """Return integers and scales.

        Args:
            weight: float32 (out, in), finite, as mask and update left it.
            keep: bool (out, in), True = kept.
            stats: calibration statistics of the layer's input, on the weight's device.

        Raises:
            MissingStatisticError: a statistic that it reads was not collected.
            SolverError: a factorisation failed; names the layer and the damping to try.
        """

    def joins(self, sweep: Mapping[str, object]) -> bool:
        """Return whether a solver's sweep with these settings (`MaskSolver.same_as_update`) can round as it goes."""
        return False
