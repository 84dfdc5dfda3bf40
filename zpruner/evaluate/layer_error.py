"""How much of a layer's output a pruned weight loses, from calibration statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.types import LayerStats

_PANEL = 192
"""Columns multiplied at once: as fast as the whole product, with up to half the work left out."""


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
    """Return tr(W G W^T), float64: of the symmetric G, the blocks above the diagonal count twice, those below never."""
    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, gram.shape[0], _PANEL):
        stop = min(start + _PANEL, gram.shape[0])
        panel = weight[:, start:stop]
        product = panel @ gram[start:stop, start:stop]
        product.addmm_(weight[:, :start], gram[:start, start:stop], alpha=2)
        total += torch.sum(product.mul_(panel), dtype=torch.float64)
    return total
