"""How much of a layer's output a pruned weight loses, from calibration statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.types import LayerStats


def layer_error(weight: Tensor, pruned: Tensor, stats: LayerStats) -> float:
    """Return ||(W - W') X||^2 / ||W X||^2 over the calibration tokens.

    With a Gram matrix it is exact: tr((W-W') G (W-W')^T) / tr(W G W^T). Without one the inputs are taken as
    uncorrelated, that is, G is replaced by its diagonal; `error_basis` tells which.

    Args:
        weight: float (out, in), dense.
        pruned: float (out, in).
        stats: of the layer's input.
    """
    dense = weight.float()
    delta = dense - pruned.float()
    if stats.gram is None:
        norms = stats.squared_norm()
        lost, whole = (delta.square() @ norms).sum(), (dense.square() @ norms).sum()
    else:
        lost, whole = _energy(delta, stats.gram), _energy(dense, stats.gram)
    return float(lost / whole) if whole > 0 else 0.0


def error_basis(stats: LayerStats) -> str:
    """Return `gram` (exact) or `diagonal` (inputs taken as uncorrelated)."""
    return "diagonal" if stats.gram is None else "gram"


def _energy(weight: Tensor, gram: Tensor) -> Tensor:
    return torch.sum((weight @ gram) * weight, dtype=torch.float64)
