"""What the solvers share."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.masks import pruned_count, select
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat

_FAINTEST = 1e-3
"""Of rows' derivatives, the least that counts: below it noise decides."""


def loudest(weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Tensor:
    """Return the mask of `|W| sqrt(diag G)` over the matrix, bool (out, in): what a solver begins with.

    Args:
        weight: float32 (out, in).
        stats: with `gram`.
        pattern: of the layer.
    """
    score = (weight * stats.require(Stat.GRAM).diagonal().sqrt()).abs_()
    return select(score, pattern, ComparisonGroup.LAYER, stats.layer)


def keep_in_block(saliency: Tensor, start: int, pattern: SparsityPattern, layer: str) -> Tensor:
    """Return the mask of one block of columns: N:M, or the lowest share of the whole block goes.

    The counts of the blocks of a layer add up to `pruned_count(out * in, ratio)`: each takes what is due up to its
    last column less what went before.

    Args:
        saliency: float32 (out, n), finite, larger = keep.
        start: the number of columns before the block.
        pattern: of the whole layer; M divides `start` and n.
        layer: the layer's name, for messages.

    Returns:
        bool (out, n), True = kept.
    """
    if pattern.is_nm:
        return select(saliency, pattern, ComparisonGroup.ROW, layer)
    rows, columns = saliency.shape
    before = pruned_count(rows * start, pattern.sparsity) if start else 0
    due = pruned_count(rows * (start + columns), pattern.sparsity) - before
    if due == saliency.numel():
        return torch.zeros_like(saliency, dtype=torch.bool)
    return select(saliency, SparsityPattern(ratio=due / saliency.numel()), ComparisonGroup.LAYER, layer)


def row_weights(square: Tensor, power: float) -> Tensor:
    """Return how much each row of a layer counts, float32 (out, 1): a power of the norm of a derivative.

    The norms are relative to their root mean square, and at least a thousandth of it; where all are zero, as of an
    expert that no token was routed to, rows are alike.

    Args:
        square: of each row's norm, float (out,).
        power: of the norm; 0 makes rows alike.
    """
    square = square.double().unsqueeze(1)
    mean = square.mean()
    if not bool(mean):
        return torch.ones_like(square, dtype=torch.float32)
    return (square / mean).sqrt_().clamp_min_(_FAINTEST).pow_(power).float()
