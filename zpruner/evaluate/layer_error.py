"""How much of a layer's output a pruned weight loses, from calibration statistics."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zpruner.linalg import centred, output_energy
from zpruner.types import LayerStats


def layer_error(weight: Tensor, pruned: Tensor, stats: LayerStats, shift: Tensor | None = None) -> float:
    """Return ||(W - W') X - s||^2 / ||W X||^2 over the calibration tokens; see `output_energy`, and `error_basis`.

    Args:
        weight: float (out, in), dense.
        pruned: float (out, in).
        stats: of the layer's input; with a shift also its sum.
        shift: what the layer's bias gained, float32 (out,); None: nothing.
    """
    whole = output_energy(weight, stats) if stats.energy is None else stats.energy
    if whole <= 0:
        return 0.0
    lost = weight.float() - pruned.float()
    if shift is None:
        return output_energy(lost, stats) / whole
    mean = lost.double() @ stats.mean() - shift.double()
    return (output_energy(lost, centred(stats)) + stats.tokens * float(mean @ mean)) / whole


def error_basis(stats: LayerStats) -> Literal["gram", "diagonal"]:
    """Return `gram` (exact) or `diagonal` (inputs taken as uncorrelated)."""
    return "diagonal" if stats.gram is None else "gram"
