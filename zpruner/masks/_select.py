"""Exact selection: from scores to the mask that prunes the lowest-scoring weights of every comparison group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, NonFiniteError, ShapeMismatchError, did_you_mean
from zpruner.types import ComparisonGroup, SparsityPattern

_PAIRWISE_GROUP_SIZE = 8
"""Up to this many weights in a group, comparing every pair is faster than partial selection (measured)."""

_PAIRWISE_AT_ONCE = 1 << 22
"""Groups compared at a time on an accelerator: three truth values for every pair."""

_LONG_ROW = 1 << 16


def select(score: Tensor, pattern: SparsityPattern, group: ComparisonGroup, layer: str = "") -> Tensor:
    """Return the mask that removes exactly as many of the lowest scores as the pattern says.

    A ratio s removes `pruned_count(in, s)` weights of every row, or `pruned_count(out * in, s)` of the matrix,
    as `group` says. N:M keeps exactly N of every M consecutive inputs of a row, whatever the group. Of equal
    scores the one with the lower index (row-major within its group) is pruned first; -0.0 equals 0.0. The mask
    is the same for any number of threads and on any device.

    Args:
        score: float32 (out, in), finite, larger = keep.
        pattern: what share of the weights goes, or N:M.
        group: which weights compete with each other when the pattern is a ratio.
        layer: the layer's name, for error messages.

    Returns:
        bool (out, in) on the device of `score`, True = kept.

    Raises:
        NonFiniteError: NaN or infinity among the scores.
        ShapeMismatchError: `score` is not a float32 matrix.
        InvalidSettingError: no such group.
        InvalidPatternError: M does not divide the number of inputs.
    """
    return select_each(score, (pattern,), group, layer)[0]


def select_each(
    score: Tensor, patterns: Sequence[SparsityPattern], group: ComparisonGroup, layer: str = ""
) -> list[Tensor]:
    """Return the mask of every pattern, as `select` gives it; ratios share their partial sorts.

    Arguments and errors as `select`.
    """
    where = f"scores of layer {layer}" if layer else "scores"
    if group not in list(ComparisonGroup):
        raise InvalidSettingError(
            "group", f"'{group}'", "row or layer", did_you_mean(str(group), list(ComparisonGroup))
        )
    if score.ndim != 2 or score.dtype != torch.float32 or not score.numel():
        raise ShapeMismatchError(
            where,
            f"{score.dtype} of shape {tuple(score.shape)}",
            "float32 of shape (out, in), not empty",
            "Pass what a pruning method's score() returns.",
        )
    score = score.detach()
    if not all(math.isfinite(extreme) for extreme in torch.aminmax(score)):
        raise NonFiniteError(
            where, "NaN or infinity", "finite scores", "Look for zero rows or overflow in the method's score()."
        )
    for pattern in patterns:
        pattern.check_width(score.shape[1], layer)
    groups = score if group == ComparisonGroup.ROW else score.reshape(1, -1)
    counts = [0 if pattern.is_nm else pruned_count(groups.shape[1], pattern.sparsity) for pattern in patterns]
    thresholds = _kth_smallest(groups, sorted({count for count in counts if count}))
    return [
        _keep_n_of_m(score, pattern)
        if pattern.is_nm
        else _keep_by_threshold(groups, count, thresholds.get(count)).view(score.shape)
        for pattern, count in zip(patterns, counts, strict=True)
    ]


def _keep_n_of_m(score: Tensor, pattern: SparsityPattern) -> Tensor:
    assert pattern.kept is not None
    assert pattern.group_size is not None
    groups = score.reshape(-1, pattern.group_size)
    if pattern.group_size <= _PAIRWISE_GROUP_SIZE:
        return _keep_by_rank(groups, pattern.kept).view(score.shape)
    pruned = pattern.group_size - pattern.kept
    return _keep_by_threshold(groups, pruned, _kth_smallest(groups, [pruned])[pruned]).view(score.shape)


def pruned_count(size: int, ratio: float) -> int:
    """Return floor(size * ratio), the number of weights that go from a comparison group of `size`.

    The product is taken as of the decimal that was written: 0.29 of 100 is 29, although the nearest float gives
    28.999999999999996. The slack of 1e-15 is relative and covers the two roundings of the product.
    """
    return min(math.floor(size * ratio * (1 + 1e-15)), size - 1)


def _keep_by_threshold(groups: Tensor, pruned: int, threshold: Tensor | None) -> Tensor:
    """Return bool like `groups` (count, size): False for the `pruned` lowest of each row, lower index first.

    `threshold` is the `pruned`-th smallest of each row, (count, 1); None where nothing is pruned.
    """
    if threshold is None:
        return torch.ones_like(groups, dtype=torch.bool)
    size = groups.shape[1]
    keep = groups > threshold
    counts = torch.int32 if size < 2**31 else torch.int64
    short = size - pruned - keep.sum(dim=1, keepdim=True, dtype=counts)
    if bool(short.any()):
        # More scores equal the threshold than have to go: the last of them in index order stay.
        tied = groups == threshold
        nth = tied.cumsum(dim=1, dtype=counts)
        keep |= tied.logical_and_(nth > nth[:, -1:] - short)
    return keep


def _kth_smallest(groups: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """Return for every k (from 1) the k-th smallest value of each row: (count, size) -> (count, 1).

    numpy's partition is vectorised for one k at a time: about nine times as fast as torch's kthvalue on the host, and
    seven times as fast as one call with several. An accelerator works on the rows side by side with kthvalue, but on
    each row with a single one of its processors.
    """
    if not groups.is_cpu:
        kth = _kth_of_long_rows if groups.shape[1] > _LONG_ROW else _kth_of_rows
        return {k: kth(groups, k) for k in ks}
    found: dict[int, Tensor] = {}
    lower = groups.numpy().copy() if ks else None
    for k in sorted(ks, reverse=True):
        assert lower is not None
        lower.partition(k - 1, axis=1)
        found[k] = torch.from_numpy(lower[:, k - 1 : k].copy())
        lower = lower[:, : k - 1]  # where all smaller ones lie now
    return found


def _kth_of_rows(groups: Tensor, k: int) -> Tensor:
    """Return the k-th smallest value of each row, (count, 1)."""
    return groups.kthvalue(k, dim=1, keepdim=True).values


def _kth_of_long_rows(groups: Tensor, k: int) -> Tensor:
    """Return what `_kth_of_rows` does, by all processors of an accelerator together: the extreme of the lowest k.

    Where fewer lie above, those are taken.
    """
    above = groups.shape[1] - k + 1
    if k <= above:
        return groups.topk(k, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    return groups.topk(above, dim=1, sorted=False).values.amin(dim=1, keepdim=True)


def _keep_by_rank(groups: Tensor, kept: int) -> Tensor:
    """Return bool like `groups` (count, size): True for the `kept` highest of each row; for small groups.

    The rank of a score is the number of scores below it, equal ones of lower index included.
    """
    size = groups.shape[1]
    if not groups.is_cpu:  # few calls on much: the host goes column by column in half to a tenth of the time
        earlier = torch.ones(size, size, dtype=torch.bool, device=groups.device).tril(-1)
        keep = torch.empty_like(groups, dtype=torch.bool)
        for part, into in zip(groups.split(_PAIRWISE_AT_ONCE), keep.split(_PAIRWISE_AT_ONCE), strict=True):
            mine, other = part.unsqueeze(2), part.unsqueeze(1)
            lower = torch.where(earlier, other <= mine, other < mine)
            torch.ge(lower.sum(dim=2, dtype=torch.int8), size - kept, out=into)
        return keep
    columns = groups.unbind(dim=1)
    ranks = [torch.full_like(column, j, dtype=torch.int8) for j, column in enumerate(columns)]
    for j in range(1, size):
        for i in range(j):
            above = (columns[i] > columns[j]).view(torch.int8)
            ranks[i] += above
            ranks[j] -= above
    keep = torch.empty_like(groups, dtype=torch.bool)
    for j, rank in enumerate(ranks):
        torch.ge(rank, size - kept, out=keep[:, j])
    return keep
