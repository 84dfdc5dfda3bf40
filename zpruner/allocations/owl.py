"""OWL: blocks with more outliers keep more (Yin et al. 2023, arXiv 2310.05175)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.allocations._base import Allocation, Unpruned
from zpruner.allocations._exact import check_ratio
from zpruner.errors import InvalidSettingError, ShapeMismatchError
from zpruner.types import SparsityPattern, Stat


class Owl(Allocation):
    """Blocks with more outliers among |W| sqrt(a) keep more.

    The paper's bound holds: no block deviates by more than `spread`. Its code stretches the range from the least to
    the most to twice that, so that a single block can deviate by more.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})

    spread: float = Field(default=0.08, ge=0.0, lt=1.0)
    """Largest deviation of a block's sparsity; lambda in the paper."""
    multiple: float = Field(default=5.0, gt=1.0)
    """Outliers are above this multiple of the block's mean; M in the paper."""

    def check(self, pattern: SparsityPattern) -> None:
        """Raise what no model can change; see `Allocation.check`."""
        if ratio := check_ratio(pattern):
            check_spread(self.spread, ratio)

    def targets(self, sparsity: float, model: Unpruned) -> dict[str, float]:
        """Return one sparsity per block; where nothing is removed there is nothing to spread."""
        if not sparsity:
            return dict.fromkeys(model.shapes, 0.0)
        shares = model.by_block(lambda scores: outlier_share(scores, self.multiple))
        return outlier_targets(shares, model.shapes, sparsity, self.spread)


def outlier_share(scores: Sequence[Tensor], multiple: float = 5.0) -> float:
    """Return the share of scores above `multiple` times their mean, the measure of a block.

    Args:
        scores: of the layers measured together (in the paper those of one decoder block, scored by Wanda's
            `|W| sqrt(a)`), each of any shape, not negative.
        multiple: M in the paper; 3 to 10 there.
    """
    size = sum(score.numel() for score in scores)
    mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / size
    return sum(int((score > multiple * mean).sum()) for score in scores) / size


def outlier_targets(
    outliers: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], sparsity: float, spread: float = 0.08
) -> dict[str, float]:
    """Return the sparsity of every layer: the more outliers, the less is pruned.

    The shares of outliers less their mean (weighted by size, so that the whole comes out) are stretched until the
    largest deviation is `spread`, and taken off the sparsity.

    Args:
        outliers: per layer, that of its block or its own, as `outlier_share` gives.
        shapes: (out, in) of every layer.
        sparsity: of all layers together.
        spread: largest deviation of a layer's sparsity from it, lambda in the paper.

    Raises:
        InvalidSettingError: the deviation would leave [0, 1).
        ShapeMismatchError: the two mappings name different layers.
    """
    if outliers.keys() != shapes.keys():
        odd = sorted(outliers.keys() ^ shapes.keys())[0]
        raise ShapeMismatchError(
            f"layer {odd}", "outliers or a shape alone", "both for every layer", "Measure every pruned layer."
        )
    check_spread(spread, sparsity)
    sizes = {name: out * width for name, (out, width) in shapes.items()}
    mean = sum(outliers[name] * size for name, size in sizes.items()) / sum(sizes.values())
    largest = max(abs(share - mean) for share in outliers.values())
    # Equal blocks differ by rounding alone: nothing to stretch.
    stretch = spread / largest if largest > 1e-12 else 0.0
    return {name: sparsity - (share - mean) * stretch for name, share in outliers.items()}


def check_spread(spread: float, sparsity: float) -> None:
    """Raise InvalidSettingError where deviations of `spread` from `sparsity` would leave [0, 1)."""
    if not 0.0 <= spread <= min(sparsity, math.nextafter(1.0 - sparsity, 0.0)):
        raise InvalidSettingError(
            "allocation.spread",
            f"{spread:g} at sparsity {sparsity:g}",
            f"at most {min(sparsity, 1.0 - sparsity):g}, so that every layer stays in [0, 1)",
            "Lower it in params.yaml.",
        )
