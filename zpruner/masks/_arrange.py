"""Columns dealt out to the groups of N:M so that more of what matters can stay (RIA, ICLR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.types import SparsityPattern

_ENTRIES = 1 << 24
"""Numbers compared at once: 64 MiB in float32."""


def kept_sum(scores: Tensor, pattern: SparsityPattern) -> float:
    """Return the sum of the scores, float32 (rows, columns), that N:M keeps, in float64."""
    assert pattern.kept is not None
    assert pattern.group_size is not None
    groups = scores.view(len(scores), -1, pattern.group_size)
    return float(groups.topk(pattern.kept, dim=-1).values.sum(dtype=torch.float64))


def arrange_columns(scores: Tensor, pattern: SparsityPattern, *, rounds: int = 2) -> Tensor:
    """Return an order of columns in which N:M keeps more of the scores: int64 (columns,), the old place of each.

    As RIA: columns sorted by their sum are dealt out to the groups, so that loud ones do not compete; then, one place
    of all groups at a time, the columns there are assigned anew so that most is kept beside those at the other places
    (the Hungarian algorithm). Assignments go on while they help, `rounds` times at most.

    Args:
        scores: float32 (rows, columns), not negative; what is lost is counted as their sum, so squared errors are apt.
        pattern: N:M.
        rounds: over all places of a group; 0: columns are dealt out only.
    """
    from scipy.optimize import linear_sum_assignment

    assert pattern.kept is not None
    assert pattern.group_size is not None
    size = pattern.group_size
    count = scores.shape[1] // size
    places = scores.sum(dim=0, dtype=torch.float64).argsort(descending=True, stable=True).view(size, count)
    places[1::2] = places[1::2].flip(1)  # back and forth: no group has the loudest of every run
    identity = torch.arange(scores.shape[1], device=scores.device)
    best, most = identity, kept_sum(scores, pattern)
    for number in range(rounds + 1):
        order = places.T.reshape(-1)
        if (found := kept_sum(scores[:, order], pattern)) <= most and number:
            break
        if found > most:
            best, most = order.clone(), found
        if number == rounds:
            break
        for place in range(size):
            others = torch.cat([places[:place], places[place + 1 :]])  # (size - 1, groups)
            gains = _gains(scores, others, places[place], pattern.kept)
            _, chosen = linear_sum_assignment(gains.double().cpu().numpy(), maximize=True)
            places[place] = places[place][torch.from_numpy(chosen).to(places.device)]
    return best


def _gains(scores: Tensor, others: Tensor, candidates: Tensor, kept: int) -> Tensor:
    """Return what group g (rows) keeps more for candidate c (columns) beside the columns that are there.

    That is, of every row, what the candidate has more than the least that stays, which it displaces.
    """
    there = scores[:, others]  # (rows, size - 1, groups)
    least = there.topk(kept, dim=1).values[:, -1].T.contiguous()  # (groups, rows)
    mine = scores[:, candidates].T.contiguous()  # (candidates, rows)
    step = max(1, _ENTRIES // mine.numel())
    return torch.cat([(mine - part.unsqueeze(1)).clamp_min_(0.0).sum(dim=-1) for part in least.split(step)])
