"""Z-Pruner: z-scores of row- and column-normalised weights (arXiv 2508.15828)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat

_BLOCK = 1 << 17
"""Weights treated at a time: temporaries that stay in the processor's cache are several times as fast."""


class ZPruner(PruningMethod):
    """A weight matters when it is unusual among the weights normalised by row, and by column.

    With `R = W / ||W_i,:||`, `C = W / ||W_:,j||` and `z` the z-score over the whole matrix (unbiased deviation),
    the score is `(alpha |z_R|^power + (1 - alpha) |z_C|^power) * sqrt(a_j)^activation_power`, where
    `alpha = row_weight * (1 - near_zero_discount * q)` and q is the share of weights smaller than
    `near_zero_threshold` times the mean `|W|`. Weights of a zero row or column score 0.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})
    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.LAYER

    row_weight: float = Field(default=0.7, ge=0.0, le=1.0)
    near_zero_discount: float = Field(default=0.3, ge=0.0, le=1.0)
    near_zero_threshold: float = Field(default=0.1, ge=0.0, le=1.0)
    power: float = Field(default=3.0, gt=0.0, le=8.0)
    activation_power: float = Field(default=1.5, ge=0.0, le=4.0)

    @torch.no_grad()
    def score(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern | None = None) -> Tensor:
        """Return the importance of every weight: float32 (out, in).

        Raises:
            MissingStatisticError: `stats` has no sq_sum.
        """
        count, height = weight.numel(), max(1, _BLOCK // weight.shape[1])
        blocks = weight.split(height)
        sums = [_sums(block.double()) for block in blocks]
        row_sum, row_sq, col_sum, col_sq, size = zip(*sums, strict=True)
        rows, row_mean, row_scale = _moments(torch.cat(row_sum), torch.cat(row_sq), count)
        cols, col_mean, col_scale = _moments(torch.stack(col_sum).sum(0), torch.stack(col_sq).sum(0), count)
        near_zero = self.near_zero_threshold * float(torch.stack(size).sum()) / count
        q = sum(int(torch.count_nonzero(block.abs() < near_zero)) for block in blocks) / count
        alpha = self.row_weight * (1.0 - self.near_zero_discount * q)
        activation = stats.squared_norm().double().pow(self.activation_power / 2).mul_(cols > 0).float()
        score = torch.empty_like(weight)
        for out, block, norm in zip(score.split(height), blocks, rows[:, None].split(height), strict=True):
            torch.div(block, norm.masked_fill(norm == 0, 1.0), out=out)
            out.sub_(row_mean).mul_(row_scale).abs_().pow_(self.power).mul_(alpha)
            z_c = (block / cols.masked_fill(cols == 0, 1.0)).sub_(col_mean).mul_(col_scale)
            out.add_(z_c.abs_().pow_(self.power), alpha=1.0 - alpha).mul_(activation)
        score[rows == 0] = 0.0
        return score


def _sums(block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return sum and sum of squares per row, the same per column, and the sum of `|W|`; overwrites `block`."""
    row, col, size = block.sum(1), block.sum(0), block.abs().sum()
    block.square_()
    return row, block.sum(1), col, block.sum(0), size


def _moments(total: Tensor, squares: Tensor, count: int) -> tuple[Tensor, float, float]:
    """Return the norms of the rows (or columns), and mean and 1 / deviation of the matrix they normalise.

    A normalised row has norm 1 (a zero one 0): the sum of squares is the number of nonzero rows. A deviation
    below 1e-6 of the mean is rounding of a constant matrix, whose z-scores are taken as 0.
    """
    norm = squares.sqrt()
    mean = float((total / norm.masked_fill(norm == 0, 1.0)).sum()) / count
    variance = (float((norm > 0).sum()) - count * mean * mean) / max(count - 1, 1)
    return norm.float(), mean, variance**-0.5 if variance > 1e-12 * mean * mean else 0.0
