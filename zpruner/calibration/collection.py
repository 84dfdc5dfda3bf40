"""Calibration statistics being summed: which layer's input each sum belongs to."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

from torch import Tensor

from zpruner.calibration.accumulate import InputAccumulator
from zpruner.types import LayerStats, Stat


@dataclass
class Collection:
    """Sums so far: one accumulator per captured input, named after the first layer that reads it.

    `owner` maps every layer to the layer whose accumulator holds its input (itself, or one that reads the same
    tensor); `windows` counts the calibration windows seen. `few` has the experts that met too few tokens, with their
    number (see `fill_experts`). `drift` and `effect` have that statistic, layer by layer.
    """

    accumulators: dict[str, InputAccumulator] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    windows: int = 0
    few: dict[str, int] = field(default_factory=dict)
    drift: dict[str, Tensor] = field(default_factory=dict)
    effect: dict[str, Tensor] = field(default_factory=dict)

    def sharing(self, layer: str) -> list[str]:
        """Return the other layers whose input is taken to be that of `layer`."""
        return [other for other, owner in self.owner.items() if owner == layer != other]

    def separate(self, layer: str) -> None:
        """Give a layer its own sums, which begin as those that it has shared."""
        known = self.owner[layer]
        heirs = self.sharing(layer) if known == layer else [layer]
        if heirs and known in self.accumulators:
            self.accumulators[heirs[0]] = deepcopy(self.accumulators[known])
            self.owner |= dict.fromkeys(heirs, heirs[0])

    def stats(self, layer: str) -> LayerStats:
        """Return the statistics of a layer's input."""
        found = self.accumulators[self.owner[layer]]
        known = LayerStats(layer, found.tokens, self.windows, **found.state(), energy=None)
        apart = {Stat.DRIFT: self.drift, Stat.EFFECT: self.effect}
        return known.having({stat: values[layer] for stat, values in apart.items() if layer in values})
