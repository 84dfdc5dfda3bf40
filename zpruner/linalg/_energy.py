"""The energy of a linear layer's output, from statistics of its input."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.runtime.products import add_matmul, matmul
from zpruner.types import LayerStats

_PANEL = 192
"""Columns multiplied at once: as fast as the whole product, with up to half the work left out."""


def output_energy(weight: Tensor, stats: LayerStats) -> float:
    """Return ||W X||^2 over the calibration tokens, summed in float64.

    With a Gram matrix it is exact, tr(W G W^T); without one the inputs are taken as uncorrelated, that is, G is
    replaced by its diagonal.

    Args:
        weight: float (out, in).
        stats: of the layer's input.
    """
    wide = weight.float()
    if stats.gram is None:
        return float((wide.square() @ stats.squared_norm()).sum(dtype=torch.float64)) * stats.windows
    gram, total = stats.gram, torch.zeros((), dtype=torch.float64, device=weight.device)
    for start in range(0, gram.shape[0], _PANEL):
        # Of the symmetric G, the blocks above the diagonal count twice, those below never.
        stop = min(start + _PANEL, gram.shape[0])
        panel = wide[:, start:stop]
        found = matmul(panel, gram[start:stop, start:stop])
        if start:
            add_matmul(found, wide[:, :start], gram[:start, start:stop], alpha=2)
        total += torch.sum(found.mul_(panel), dtype=torch.float64)
    return float(total)
