"""Statistics of a layer's input less its mean: what a bias cannot carry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zpruner.types import LayerStats, Stat

_ROUNDING = 1e-5
"""Share of its mean square below which an input's variance is rounding error of float32 sums."""


def centred(stats: LayerStats) -> LayerStats:
    """Return the statistics of the input less its mean over tokens, of those that a solver reads.

    Where a bias takes up the mean of what a layer loses, `(W - W') m`, the rest is `(W - W') C (W - W')^T` with the
    covariance `C = X X^T - n m m^T`. An input that is constant has no rest: its row and column become zero, and a
    solver leaves all of it to the bias. Half of the tokens are centred by their own mean; `gram_half` is left out where
    there is no `sum_half`.

    Args:
        stats: of a layer's input, with its sum.

    Raises:
        MissingStatisticError: no sum.
    """
    total = stats.require(Stat.SUM).double()
    changed: dict[str, Any] = {"sum": torch.zeros_like(total)}
    if stats.sq_sum is not None:
        changed["sq_sum"] = stats.variance().to(stats.sq_sum.dtype)
    if stats.gram is not None:
        changed["gram"] = _covariance(stats.gram, total, stats.tokens)
    if stats.gram_half is not None:
        half = stats.sum_half
        changed["gram_half"] = None if half is None else _covariance(stats.gram_half, half.double(), stats.tokens / 2)
        changed["sum_half"] = None if half is None else torch.zeros_like(half)
    return replace(stats, **changed)


def _covariance(gram: Tensor, total: Tensor, tokens: float) -> Tensor:
    """Return `X X^T - n m m^T`, float32 (in, in), given `X X^T` and `n m`."""
    root = (total / max(tokens, 1.0) ** 0.5).float()
    found = torch.addr(gram, root, root, alpha=-1.0)
    constant = found.diagonal() <= _ROUNDING * gram.diagonal()
    found[constant] = 0.0
    found[:, constant] = 0.0
    return found
