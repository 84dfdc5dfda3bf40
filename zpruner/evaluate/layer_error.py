"""How much of a layer's output a pruned weight loses, from calibration statistics."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from zpruner.linalg import output_energy
from zpruner.types import LayerStats


def layer_error(weight: Tensor, pruned: Tensor, stats: LayerStats) -> float:
    """Return ||(W - W') X||^2 / ||W X||^2 over the calibration tokens; see `output_energy`, and `error_basis`.

    Args:
        weight: float (out, in), dense.
        pruned: float (out, in).
        stats: of the layer's input.
    """
    whole = output_energy(weight, stats) if stats.energy is None else stats.energy
    return output_energy(weight.float() - pruned.float(), stats) / whole if whole > 0 else 0.0


def error_basis(stats: LayerStats) -> Literal["gram", "diagonal"]:
    """Return `gram` (exact) or `diagonal` (inputs taken as uncorrelated)."""
    return "diagonal" if stats.gram is None else "gram"
