"""Z-Pruner: z-scores of row- and column-normalised weights (arXiv 2508.15828)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, Stat, at_a_time

_BLOCK = (1 << 15) - 1
"""Weights treated at a time: temporaries stay in the cache, and torch starts no threads for so few (measured)."""


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
    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the importance of every weight: float32 (out, in).

        Raises:
            MissingStatisticError: `stats` has no sq_sum.
        """
        count, height = weight.numel(), max(1, at_a_time(weight.device, _BLOCK) // weight.shape[1])
        blocks = weight.split(height)
        row_sum, row_sq, col_sum, col_sq, size = zip(*(_sums(block) for block in blocks), strict=True)
        near_zero = self.near_zero_threshold * float(torch.stack(size).sum()) / count
        q = sum(float(block.abs().lt_(near_zero).sum()) for block in blocks) / count
        alpha = self.row_weight * (1.0 - self.near_zero_discount * q)
        rows, row_mean = self._z_score(torch.cat(row_sum), torch.cat(row_sq), count, alpha)
        cols, col_mean = self._z_score(torch.stack(col_sum).sum(0), torch.stack(col_sq).sum(0), count, 1.0 - alpha)
        activation = stats.squared_norm().double().pow(self.activation_power / 2)
        activation = activation.masked_fill_(torch.stack(col_sq).sum(0) == 0, 0.0).float()
        score, other = torch.empty_like(weight), torch.empty_like(blocks[0])
        for out, block, row in zip(score.split(height), blocks, rows[:, None].split(height), strict=True):
            torch.div(block, row, out=out).sub_(row_mean).abs_().pow_(self.power)
            z_c = torch.div(block, cols, out=other[: len(block)]).sub_(col_mean).abs_().pow_(self.power)
            out.add_(z_c).mul_(activation)
        dead = torch.cat(row_sq) == 0
        if bool(dead.any()):
            score[dead] = 0.0
        return score

    def _z_score(self, total: Tensor, squares: Tensor, count: int, share: float) -> tuple[Tensor, float]:
        """Return d and m such that `|W / d - m|^power` is `share * |z|^power`: float32 (rows,) or (columns,), float.

        A normalised row has norm 1 (a zero one 0): the matrix's sum of squares is the number of nonzero rows. A
        deviation below 1e-6 of the mean is rounding of a constant matrix, whose z-scores are taken as 0.

        Args:
            total: sums of the rows (or columns) that are normalised, float64.
            squares: sums of their squares, float64.
            count: number of weights.
            share: of these z-scores in the score.
        """
        norm = squares.sqrt().masked_fill_(squares == 0, 1.0)
        mean = float((total / norm).sum()) / count
        variance = (float((squares > 0).sum()) - count * mean * mean) / max(count - 1, 1)
        scale = share ** (1 / self.power) * variance**-0.5 if variance > 1e-12 * mean * mean else 0.0
        return (norm / scale).float(), mean * scale


def _sums(block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return sum and sum of squares per row, the same per column, and the sum of `|W|`: float64."""
    wide = block.double()
    row, col = wide.sum(1), wide.sum(0)
    size = wide.abs_().sum()
    wide.square_()
    return row, wide.sum(1), col, wide.sum(0), size
