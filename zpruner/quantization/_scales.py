"""Scales by least squared error, weighted by the energy of each input."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.quantization._grid import Grid, nearest_integers
from zpruner.types import at_a_time

_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.74, 0.68, 0.62, 0.55, 0.48, 0.4, 0.32)
"""Shares of the extreme weight that the ends of the grid are tried at."""
_FEW_LEVELS = 4
"""Up to so many bits clipping pays, and it matters which side has the end farther out."""
_IN_CACHE = 1 << 16


def choose_scales(
    weight: Tensor, keep: Tensor, grid: Grid, energy: Tensor | None = None, taken: Tensor | None = None
) -> Tensor:
    """Return scales by which the nearest grid points have the least `sum_j energy_j (w_j - q_j)^2` in every group.

    The ends of the grid are laid at some shares of the group's extreme weight; for the integers that each gives, the
    best scale is known exactly (weighted least squares), and rounding by it anew gives the error that is compared.

    Args:
        weight: float32 (out, in), finite; read where kept.
        keep: bool (out, in), True = kept.
        grid: of the integers and groups.
        energy: the diagonal of the Hessian, float32 (in,), not negative; None: all inputs weigh the same.

        taken: places of a row's first group that weights before these have, int64 (out,), below the group's size;
            None: all groups are whole.

    Returns:
        `grid.scale_dtype` (out, groups): 0 for a group of zeros, and beyond a row's last group.
    """
    rows, width = weight.shape
    size = grid.size(width)
    taken = torch.zeros(rows, dtype=torch.int64, device=weight.device) if taken is None else taken
    groups = int((-(-(taken + keep.sum(dim=1)) // size)).max()) if rows else 0
    scales = torch.zeros(rows, groups, dtype=grid.scale_dtype, device=weight.device)
    if not groups:
        return scales
    energy = torch.ones(width, device=weight.device) if energy is None else energy
    energy = energy / energy.mean().clamp_min(torch.finfo(torch.float32).tiny)
    tile = max(1, at_a_time(weight.device, _IN_CACHE) // width)
    for low in range(0, rows, tile):
        part = slice(low, low + tile)
        slot = keep[part].cumsum(1) - 1 + taken[part].unsqueeze(1)
        slot = torch.where(keep[part], slot, groups * size)  # what is pruned goes to a column that is dropped
        shape = len(slot), groups * size + 1

        def gathered(values: Tensor, slot: Tensor = slot, shape: tuple[int, int] = shape) -> Tensor:
            return values.new_zeros(shape).scatter_(1, slot, values)[:, :-1].reshape(-1, size)

        values, weights = gathered(weight[part]), gathered(energy.expand(slot.shape))
        scales[part] = _best(values, weights, grid).view(-1, groups)
    return scales


def _best(weight: Tensor, energy: Tensor, grid: Grid) -> Tensor:
    """Return the best scale, float32 (n,) as stored, of groups (n, size)."""
    most = weight.abs().amax(dim=1)
    # Scaled to 1 no square overflows or vanishes. A weight of no energy still has to be represented a little.
    unit = weight / most.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    energy = energy.clamp_min(1e-6)
    best = torch.zeros_like(most)
    least = torch.full_like(most, torch.inf)
    few = grid.bits <= _FEW_LEVELS
    for share in _SHRINK if few else _SHRINK[:3]:
        for sign in (1.0, -1.0) if few else (1.0,):
            first = torch.full_like(most, sign * share / grid.high).unsqueeze(1)
            whole = nearest_integers(unit, first, grid)
            square = torch.sum(energy * whole * whole, dim=1)
            found = torch.sum(energy * unit * whole, dim=1) / square
            scale = torch.where(square > 0, found * most, 0.0).to(grid.scale_dtype).float()
            ratio = (scale / most.clamp_min(torch.finfo(torch.float32).tiny)).unsqueeze(1)
            error = torch.sum(energy * (unit - nearest_integers(unit, ratio, grid) * ratio).square(), dim=1)
            better = error < least
            least, best = torch.where(better, error, least), torch.where(better, scale, best)
    return best
