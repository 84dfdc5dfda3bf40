"""Exchanges of a kept and a pruned weight of one row, and what each does to the row's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.runtime.products import matmul


def exchange(
    weight: Tensor, keep: Tensor, matrix: Tensor, *, group_size: int, candidates: int, limit: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Make exchanges in every row, one after another, each the best pair among the row's candidates.

    With z the pruned weights of a row and `c = z H`, its loss is `z c^T`. Pruning the kept weight u and keeping the
    pruned p changes it by `a_u + b_p - Q_up`, where `Q_ij = 2 w_i w_j H_ij`, `a = 2 w c + w^2 diag H` and
    `b = -2 w c + w^2 diag H`. c is computed once, at full precision; from one exchange to the next Q carries it on
    for the candidates, so that no product of full width is needed.

    Args:
        weight: float32 (rows, in).
        keep: bool (rows, in); changed in place.
        matrix: H, symmetric, float32 (in, in).
        group_size: M of N:M, both of a pair in one group of M consecutive inputs; 0 if any two may be exchanged.
        candidates: inputs considered per row; all of them where that is at least the width.
        limit: exchanges per row at most, int64 (rows,).
        least: the gain that an exchange must exceed, float32 (rows,).

    Returns:
        Per row the number of exchanges, int64 (rows,), and the change of the loss, float32 (rows,), at most 0.
    """
    slope = matmul(weight.masked_fill(keep, 0.0), matrix).mul_(weight).mul_(2)
    square = weight.square() * matrix.diagonal()
    index, usable = _candidates(weight, keep, matrix, slope, square, group_size, candidates)
    width = index.shape[1]
    kept, local = keep.gather(1, index), weight.gather(1, index)
    slope, square = slope.gather(1, index), square.gather(1, index)
    product = matrix[index.unsqueeze(2), index.unsqueeze(1)]
    product.mul_(local.unsqueeze(2)).mul_(2 * local.unsqueeze(1))
    allowed = product
    if group_size:
        group = torch.arange(width, device=index.device) // group_size
        allowed = product.masked_fill(group.unsqueeze(1) != group, -torch.inf)
    pairs = torch.empty_like(product)
    count, change = torch.zeros_like(limit), torch.zeros_like(least)
    for _ in range(int(limit.max())):
        leaving = (square + slope).masked_fill_(~(kept & usable), torch.inf)
        entering = (square - slope).masked_fill_(kept | ~usable, torch.inf)
        torch.sub(leaving.unsqueeze(2), allowed, out=pairs).add_(entering.unsqueeze(1))
        best, flat = pairs.flatten(1).min(dim=1)
        going = ((-best > least) & (count < limit)).nonzero().squeeze(1)
        if not len(going):
            break
        leave, enter = flat[going] // width, flat[going] % width
        kept[going, leave], kept[going, enter] = False, True
        slope[going] += product[going, leave] - product[going, enter]
        change[going] += best[going]
        count[going] += 1
    # Not by scatter: a column that may not move can be one of the others, too.
    rows, at = (kept != keep.gather(1, index)).nonzero(as_tuple=True)
    keep[rows, index[rows, at]] = kept[rows, at]
    return count, change


def _candidates(
    weight: Tensor, keep: Tensor, matrix: Tensor, slope: Tensor, square: Tensor, group_size: int, candidates: int
) -> tuple[Tensor, Tensor]:
    """Return the columns considered in every row, int64 (rows, n), and which may move, bool (rows, n).

    Without groups, half are the kept and half the pruned weights whose own term is lowest; a row that has fewer of
    one kind gets others in their place that may not move. With groups, all columns of the groups whose best pair
    gains most.
    """
    rows, width = weight.shape
    leaving = (square + slope).masked_fill_(~keep, torch.inf)
    entering = (square - slope).masked_fill_(keep, torch.inf)
    if candidates >= width:
        index = torch.arange(width, device=weight.device).expand(rows, width)
        return index, torch.ones_like(keep)
    if not group_size:
        half = max(1, candidates // 2)
        leave = leaving.topk(half, dim=1, largest=False).indices
        enter = entering.topk(half, dim=1, largest=False).indices
        return torch.cat([leave, enter], 1), torch.cat([keep.gather(1, leave), ~keep.gather(1, enter)], 1)
    groups = width // group_size
    blocks = matrix.view(groups, group_size, groups, group_size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    parts = weight.view(rows, groups, group_size)
    best = torch.full((rows, groups), torch.inf, dtype=weight.dtype, device=weight.device)
    for u in range(group_size):
        pairs = entering.view(parts.shape) - 2 * parts[:, :, u : u + 1] * parts * blocks[:, u]
        best = torch.minimum(best, pairs.amin(dim=2) + leaving.view(parts.shape)[:, :, u])
    chosen = best.topk(max(1, candidates // group_size), dim=1, largest=False).indices
    offsets = torch.arange(group_size, device=weight.device)
    index = (chosen.unsqueeze(2) * group_size + offsets).flatten(1)
    return index, torch.ones_like(index, dtype=torch.bool)
