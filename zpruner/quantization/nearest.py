"""Round to nearest: every weight by itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.quantization._base import Rounding
from zpruner.quantization._layer import QuantizedLayer
from zpruner.quantization._scales import choose_scales
from zpruner.types import LayerStats, Stat


class Nearest(Rounding):
    """Every weight goes to the nearest grid point; scales by squared error, weighted with the energy of each input."""

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})

    def round(self, weight: Tensor, keep: Tensor, stats: LayerStats) -> QuantizedLayer:
        """Return integers and scales; see `Rounding.round`."""
        scales = choose_scales(weight, keep, self.grid, stats.squared_norm())
        return QuantizedLayer.nearest(stats.layer, weight, scales, keep, self.grid)
