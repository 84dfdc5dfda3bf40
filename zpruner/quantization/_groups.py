"""Which kept weights share a scale."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.quantization._grid import Grid


def group_of(keep: Tensor, grid: Grid) -> Tensor:
    """Return the index within its row of every weight's group, int64 (out, in); of no meaning where pruned.

    Args:
        keep: bool (out, in), True = kept.
        grid: how many kept weights form a group.
    """
    before = keep.cumsum(dim=1, dtype=torch.int64) - keep.to(torch.int64)
    return before // grid.size(keep.shape[1])


def group_counts(keep: Tensor, grid: Grid) -> Tensor:
    """Return how many groups every row has, int64 (out,); 0 in a row without kept weights."""
    return -(-keep.sum(dim=1, dtype=torch.int64) // grid.size(keep.shape[1]))


def per_weight(scales: Tensor, keep: Tensor, grid: Grid) -> Tensor:
    """Return the scale of every kept weight, 0 where pruned: float32 (out, in).

    Args:
        scales: (out, groups), of any floating type.
        keep: bool (out, in), True = kept.
        grid: how many kept weights form a group.
    """
    if not scales.shape[1]:
        return torch.zeros(keep.shape, device=keep.device)
    group = group_of(keep, grid).clamp_max_(scales.shape[1] - 1)
    return scales.float().gather(1, group).masked_fill_(~keep, 0.0)
