"""1-swap refinement of a mask (SparseSwaps, arXiv 2512.10922)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.linalg import damped_hessian
from zpruner.masks._base import MaskRefinement
from zpruner.masks._exchange import exchange
from zpruner.runtime.products import matmul
from zpruner.types import LayerStats, SparsityPattern, Stat

_ELEMENTS = 1 << 23
"""Elements of one work matrix (32 MiB in float32); a few such are held at once, whatever the layer's size."""


class Swaps(MaskRefinement):
    """Exchange a kept and a pruned weight of a row as long as the row's loss `z H z^T` falls, z the pruned weights.

    The loss counts no weight update, so that a mask refined so is best where none follows. Every row keeps its
    count, under N:M every group. The pair is the best among `candidates` inputs of the row, chosen anew every
    `recompute_every` exchanges, when the products `z H` are computed afresh as well.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 1

    max_swaps: int = Field(default=100, ge=1)
    """Exchanges per row at most."""
    tolerance: float = Field(default=1e-4, ge=0.0, lt=1.0)
    """A row is done when its best exchange gains no more than this share of the loss that it began with."""
    recompute_every: int = Field(default=16, ge=1)
    """Exchanges per row between two fresh computations."""
    candidates: int = Field(default=32, ge=2)
    """Inputs of a row among which pairs are formed; with the width or more, all pairs are tried every time."""
    damping: float = Field(default=0.0, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it."""

    def refine(self, weight: Tensor, keep: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Tensor:
        """Return the better mask: bool (out, in), True = kept, with `keep`'s count in every row (or N:M group).

        Raises:
            MissingStatisticError: `stats` has no gram.
            InvalidPatternError: M does not divide the number of inputs.
        """
        pattern.check_width(weight.shape[1], stats.layer)
        hessian = damped_hessian(stats.require(Stat.GRAM), self.damping, stats.layer)
        # The mask does not depend on the scale, and squares of the scaled weights cannot overflow.
        weight = weight.masked_fill(hessian.dead, 0.0)
        weight = weight / weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        group_size = pattern.group_size or 0
        candidates = min(max(self.candidates, group_size), weight.shape[1])
        tile = max(1, _ELEMENTS // max(candidates**2, weight.shape[1]))
        refined = keep.clone()
        for low in range(0, len(weight), tile):
            rows = slice(low, low + tile)
            refined[rows] = self._refine_rows(weight[rows], keep[rows], hessian.matrix, group_size, candidates)
        return refined

    def _refine_rows(self, weight: Tensor, keep: Tensor, matrix: Tensor, group_size: int, candidates: int) -> Tensor:
        """Return the better mask of a tile of rows."""
        keep = keep.clone()
        removed = weight.masked_fill(keep, 0.0)
        least = torch.linalg.vecdot(matmul(removed, matrix), removed).clamp_min_(0.0).mul_(self.tolerance)
        left = torch.full((len(weight),), self.max_swaps, device=weight.device)
        active = torch.arange(len(weight), device=weight.device)
        while len(active):
            part = keep[active]
            count, _ = exchange(
                weight[active],
                part,
                matrix,
                group_size=group_size,
                candidates=candidates,
                limit=left[active].clamp_max(self.recompute_every),
                least=least[active],
            )
            keep[active] = part
            left[active] -= count
            active = active[(count > 0) & (left[active] > 0)]
        return keep
