"""DLP: blocks whose typical weight matters more lose more (Chen et al. 2025, arXiv 2505.23807)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.allocations._base import Allocation, Unpruned
from zpruner.allocations._exact import check_ratio
from zpruner.errors import InvalidSettingError
from zpruner.types import SparsityPattern, Stat


class Dlp(Allocation):
    """Blocks with a larger median of |W| sqrt(a) lose more: what counts in them is spread over more weights.

    A block's importance is one less its share of the sum of all medians, stretched to a range of `2 alpha` and taken
    off the sparsity, as in the authors' code; the mean is weighted by size, so that the whole comes out.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM})

    alpha: float = Field(default=0.15, ge=0.0, lt=0.5)
    """Half the range of the blocks' sparsities."""

    def check(self, pattern: SparsityPattern) -> None:
        """Raise what no model can change; see `Allocation.check`."""
        ratio = check_ratio(pattern)
        if ratio and not self.alpha < min(ratio, 1.0 - ratio):  # some block is at least so far from the mean
            raise out_of_range(self.alpha, ratio)

    def targets(self, sparsity: float, model: Unpruned) -> dict[str, float]:
        """Return one sparsity per block; where nothing is removed there is nothing to spread."""
        if not sparsity:
            return dict.fromkeys(model.shapes, 0.0)
        return median_targets(model.by_block(median), model.shapes, sparsity, self.alpha)


def median(scores: Sequence[Tensor]) -> float:
    """Return the median of all scores together, each of any shape: of an even number, the lower one in the middle."""
    return float(torch.cat([score.flatten() for score in scores]).median())


def median_targets(
    medians: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], sparsity: float, alpha: float = 0.15
) -> dict[str, float]:
    """Return the sparsity of every layer: the larger its block's median saliency, the more is pruned.

    Args:
        medians: per layer, that of its block.
        shapes: (out, in) of every layer.
        sparsity: of all layers together.
        alpha: half the range of the sparsities.

    Raises:
        InvalidSettingError: a sparsity would leave [0, 1).
    """
    least, most = min(medians.values()), max(medians.values())
    # Equal blocks differ by rounding alone: nothing to stretch.
    stretch = 2 * alpha / (most - least) if most - least > 1e-12 * most else 0.0
    scaled = {name: (median - least) * stretch for name, median in medians.items()}
    sizes = {name: out * width for name, (out, width) in shapes.items()}
    mean = sum(scaled[name] * size for name, size in sizes.items()) / sum(sizes.values())
    targets = {name: sparsity + share - mean for name, share in scaled.items()}
    if min(targets.values()) < 0.0 or max(targets.values()) >= 1.0:
        raise out_of_range(alpha, sparsity)
    return targets


def out_of_range(alpha: float, sparsity: float) -> InvalidSettingError:
    """Return the error that says that blocks would lose all of their weights, or less than none."""
    return InvalidSettingError(
        "allocation.alpha",
        f"{alpha:g} at sparsity {sparsity:g}",
        "so little that every layer's sparsity stays in [0, 1)",
        f"Lower it in params.yaml: {min(sparsity, 1.0 - sparsity) / 2:g} always fits.",
    )
