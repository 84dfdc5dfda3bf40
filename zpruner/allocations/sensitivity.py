"""Sensitivity: layers lose as much as the loss lets them, each up to the same marginal cost."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.allocations._base import Allocation, Unpruned
from zpruner.types import LayerStats, Stat

_LOWEST, _OCTAVES, _BINS = -300, 600, 4
"""Costs are counted by their binary logarithm, from the lowest on, four bins to an octave."""
_KEPT = 1 / 6
"""What every layer keeps, as a share of what the model keeps."""


class Sensitivity(Allocation):
    """The weight that goes next costs the loss as much in one layer as in another.

    What a weight costs is taken as `(r_i |W_ij|)^2 sum_t x_jt^2`, r_i^2 being the mean squared gradient of output i in
    the unpruned model: the second-order loss of Optimal Brain Damage (LeCun et al. 1989) with the Fisher information
    for the curvature, the gradients of a row's weights taken together. The sum of these costs for one number of
    weights is least, with every layer within `spread` of the common sparsity, where the next one costs the same
    everywhere, which is found by bisection. A layer without a gradient, such as an expert that no token was routed to,
    keeps the common sparsity.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM, Stat.GRAD_SQ})

    spread: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Largest deviation of a layer's sparsity. No layer keeps less than a sixth of the share that the model keeps."""

    def targets(self, sparsity: float, model: Unpruned) -> dict[str, float]:
        """Return one sparsity per layer; where nothing is removed there is nothing to spread."""
        counted = {name: _counts(*model.layer(name)) for name in model.shapes} if sparsity else {}
        known = [name for name, counts in counted.items() if counts is not None]
        found = dict.fromkeys(model.shapes, sparsity)
        if not known:
            return found
        shares = torch.stack([counts / counts.sum() for counts in counted.values() if counts is not None])
        below = torch.nn.functional.pad(shares.cumsum(1), (1, 0))  # of each layer's weights, at each edge of a bin
        sizes = torch.tensor([out * width for out, width in map(model.shapes.__getitem__, known)], dtype=torch.float64)
        least, most = max(sparsity - self.spread, 0.0), min(sparsity + self.spread, 1.0 - _KEPT * (1.0 - sparsity))
        low, high = 0.0, float(shares.shape[1])
        for _ in range(100):
            middle = (low + high) / 2
            edge = min(int(middle), shares.shape[1] - 1)
            at = torch.lerp(below[:, edge], below[:, edge + 1], middle - edge)
            targets = at.clamp(least, most)
            if float(targets @ sizes) < sparsity * float(sizes.sum()):
                low = middle
            else:
                high = middle
        return found | dict(zip(known, targets.tolist(), strict=True))


def _counts(weight: Tensor, stats: LayerStats) -> Tensor | None:
    """Return how many weights of a layer cost so much, float64 (bins,); None where it has no gradient."""
    squares = stats.require(Stat.SQ_SUM).double()
    rows = stats.require(Stat.GRAD_SQ).double().sum(1)
    if not bool(rows.any()) or not bool(squares.any()):
        return None
    # A row's gradients are sums over tokens of the output's times the inputs.
    costs = weight.float().abs().log2_().mul_(2.0)
    costs += (rows / squares.sum()).log2().float().unsqueeze(1)
    costs += squares.log2().float()
    bins = costs.sub_(_LOWEST).mul_(_BINS).clamp_(0, _OCTAVES * _BINS - 1).long()
    return torch.bincount(bins.flatten(), minlength=_OCTAVES * _BINS).double().cpu()
