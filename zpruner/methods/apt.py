"""APT / MRP: many removals at once (Zhao et al. 2024, arXiv 2410.15567)."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from zpruner.errors import InvalidSettingError, SolverError
from zpruner.linalg import damped_hessian, inverse_factor, masked_cg
from zpruner.methods._base import MaskSolver, Solution
from zpruner.methods._block import keep_in_block
from zpruner.runtime.products import add_matmul, matmul
from zpruner.types import LayerStats, SparsityPattern, Stat

_MOST_CHOICES = 20_000
_ELEMENTS = 1 << 24
_MOST_STEPS = 1000


class Apt(MaskSolver):
    """Prune by the loss that removal costs after the best compensation, of one weight or of a set at once.

    The published SM and MM are this mask with `mask: S` or `mask: M` and the update `least_squares`.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    workspace: ClassVar[int] = 2

    mask: Literal["S", "M"] = "M"
    """S: each weight by the loss of its single removal, `w_q^2 / [H^-1]_qq`. M: under N:M, of all choices in a group
    the one of least joint loss `w_P ([H^-1]_PP)^-1 w_P^T`; a ratio has no groups, and S there is part of the method."""
    block_size: int | None = Field(default=128, ge=1)
    """Columns whose mask is chosen together, before the later ones are compensated for them; null: all. N:M rounds
    it up to whole groups."""
    damping: float = Field(default=0.01, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it."""

    def solve(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Solution:
        """Return the mask, and the weights after compensating block of columns by block of columns.

        Raises:
            MissingStatisticError: `stats` has no gram.
            SolverError: the Hessian is singular, or nearly; names the layer and the damping to try.
            InvalidPatternError: M does not divide the number of inputs.
            InvalidSettingError: the groups have too many choices to enumerate.
        """
        width = weight.shape[1]
        pattern.check_width(width, stats.layer)
        hessian = damped_hessian(stats.require(Stat.GRAM), self.damping, stats.layer)
        upper = inverse_factor(hessian)
        # The mask does not depend on the scale, and squares of the scaled weights cannot overflow.
        weight = weight.masked_fill(hessian.dead, 0.0)
        scale = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        weight = weight / scale
        group = pattern.group_size or 1
        block = min(self.block_size or width, width)
        block += -block % group
        keep = torch.ones_like(weight, dtype=torch.bool)
        for start in range(0, width, block):
            stop = min(start + block, width)
            # With the columns before `start` settled, U's trailing part is the factor of what is left.
            corner = upper[start:stop, start:stop]
            current = weight[:, start:stop]
            inverse = matmul(corner.T, corner)
            if pattern.is_nm and self.mask == "M":
                chosen = _least_joint_loss(current, inverse, pattern)
            else:
                saliency = current.abs() / inverse.diagonal().sqrt()
                chosen = keep_in_block(saliency, start, pattern, stats.layer)
            keep[:, start:stop] = chosen
            factors = masked_cg(inverse, ~chosen, current, tolerance=1e-3, max_steps=_MOST_STEPS)
            if not factors.settled:
                raise SolverError(
                    f"APT of layer {stats.layer}",
                    f"a compensation that did not settle in {_MOST_STEPS} steps of conjugate gradients",
                    "a residual of 0.001",
                    f"Raise damping, now {self.damping:g}.",
                )
            add_matmul(weight[:, stop:], matmul(factors.values, corner.T), upper[start:stop, stop:], alpha=-1)
            add_matmul(current, factors.values, inverse, alpha=-1).mul_(chosen)
        return Solution(keep, weight * scale)


def _least_joint_loss(weight: Tensor, inverse: Tensor, pattern: SparsityPattern) -> Tensor:
    """Return the N:M mask, bool (out, n), whose pruned sets have the least joint loss in every group of every row.

    With `L L^T = [H^-1]_PP` the loss is `|L^-1 w_P|^2`, a fixed linear map of the group's weights per choice P.

    Args:
        weight: float32 (out, n).
        inverse: H^-1 restricted to these columns, float32 (n, n).
        pattern: N:M, M dividing n.
    """
    assert pattern.kept is not None
    assert pattern.group_size is not None
    size, pruned = pattern.group_size, pattern.group_size - pattern.kept
    if comb(size, pruned) > _MOST_CHOICES:
        raise InvalidSettingError(
            "apt.mask",
            f"M with {comb(size, pruned):,} choices in every group of {pattern}",
            f"at most {_MOST_CHOICES:,} to enumerate",
            "Set mask: S for this pattern.",
        )
    choices = torch.tensor(list(combinations(range(size), pruned)), device=weight.device)
    count, groups = len(choices), weight.shape[1] // size
    blocks = inverse.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    factors = torch.linalg.cholesky(blocks[:, choices.unsqueeze(2), choices.unsqueeze(1)])
    identity = torch.eye(pruned, dtype=weight.dtype, device=weight.device).expand_as(factors)
    # (groups, choices, pruned, size): rows of L^-1, each spread over the group's columns.
    maps = torch.zeros(groups, count, pruned, size, dtype=weight.dtype, device=weight.device)
    columns = choices.view(1, count, 1, pruned).expand_as(factors)
    maps.scatter_(3, columns, torch.linalg.solve_triangular(factors, identity, upper=False))
    maps = maps.view(groups, count * pruned, size).mT
    removed = torch.zeros(count, size, dtype=torch.bool, device=weight.device).scatter_(1, choices, True)
    keep = torch.empty_like(weight, dtype=torch.bool)
    rows = max(1, _ELEMENTS // (groups * count * pruned))
    for low in range(0, len(weight), rows):
        part = weight[low : low + rows].view(-1, groups, size).transpose(0, 1)
        losses = (part @ maps).view(groups, -1, count, pruned).square().sum(dim=3)
        best = losses.argmin(dim=2).T
        keep[low : low + rows] = ~removed[best].flatten(1)
    return keep
