"""Non-uniform sparsity: how many weights each layer gives, so that all layers together give exactly what is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from zpruner.errors import InvalidPatternError, InvalidSettingError, ShapeMismatchError, did_you_mean
from zpruner.masks._select import pruned_count
from zpruner.types import ComparisonGroup, SparsityPattern


def outlier_share(scores: Sequence[Tensor], multiple: float = 5.0) -> float:
    """Return the share of scores above `multiple` times their mean: OWL's measure of a block (arXiv 2310.05175).

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
    """Return OWL's sparsity of every layer: the more outliers, the less is pruned (arXiv 2310.05175).

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


def check_ratio(pattern: SparsityPattern) -> float:
    """Return the pattern's ratio; raise InvalidPatternError for N:M, which fixes the sparsity of every group."""
    if pattern.ratio is None:
        raise InvalidPatternError(
            "allocation",
            f"the pattern {pattern}",
            "a ratio: N:M fixes every layer's sparsity",
            "Use allocation with unstructured sparsities only.",
        )
    return pattern.ratio


def table_targets(
    table: Mapping[str, float], shapes: Mapping[str, tuple[int, int]], sparsity: float
) -> dict[str, float]:
    """Return the sparsity of every layer: the table's where a pattern fits, else what is left for the others.

    Args:
        table: name pattern (`"*.down_proj"`, as in a shell) -> sparsity; the first that fits a layer counts.
        shapes: (out, in) of every layer.
        sparsity: of all layers together.

    Raises:
        InvalidSettingError: a pattern that fits no layer or no ratio in [0, 1); a table that leaves the other
            layers a sparsity outside [0, 1), or covers all layers and adds up to another sparsity.
    """
    for pattern, ratio in table.items():
        if not 0.0 <= ratio < 1.0:
            raise InvalidSettingError(
                f"allocation.table {pattern!r}", f"{ratio!r}", "a ratio in [0, 1)", "Correct it in params.yaml."
            )
        if not any(fnmatchcase(name, pattern) for name in shapes):
            raise InvalidSettingError(
                f"allocation.table {pattern!r}",
                "a pattern that fits no layer",
                "one that fits some layer's name",
                did_you_mean(pattern.rpartition(".")[2], {name.rpartition(".")[2] for name in shapes}),
            )
    fixed = {
        name: next(ratio for pattern, ratio in table.items() if fnmatchcase(name, pattern))
        for name in shapes
        if any(fnmatchcase(name, pattern) for pattern in table)
    }
    sizes = {name: out * width for name, (out, width) in shapes.items()}
    rest = sum(size for name, size in sizes.items() if name not in fixed)
    given = sum(ratio * sizes[name] for name, ratio in fixed.items())
    wanted = sparsity * sum(sizes.values()) - given
    if not rest:
        if abs(wanted) >= 1.0:
            raise InvalidSettingError(
                "allocation.table",
                f"sparsity {given / sum(sizes.values()):.6g} for all layers together",
                f"{sparsity:g}",
                "Leave some layers out of the table: they take what remains.",
            )
        return fixed
    remaining = wanted / rest
    if not -1e-9 <= remaining < 1.0:
        raise InvalidSettingError(
            "allocation.table",
            f"sparsity {remaining:.4g} for the layers that it leaves out",
            f"one in [0, 1), for {sparsity:g} overall",
            "Raise or lower the table's ratios, or the overall sparsity.",
        )
    return {name: fixed.get(name, max(remaining, 0.0)) for name in shapes}


def allocate(
    targets: Mapping[str, float],
    shapes: Mapping[str, tuple[int, int]],
    pattern: SparsityPattern,
    group: ComparisonGroup = ComparisonGroup.LAYER,
) -> dict[str, SparsityPattern]:
    """Return a pattern per layer whose pruned counts add up to exactly `pruned_count(total, ratio)`.

    Every target is rounded down to whole weights, and what is then missing goes, one weight each, to the layers
    whose targets lost most. `select` with the layer group turns each pattern into that count. With the row group
    every row of a layer loses the same number: counts are multiples of `out`, and the total is the nearest from
    below that this rounding reaches, less than the largest `out` away from the exact one.

    Args:
        targets: layer -> sparsity, which together make about `pattern`'s, as the functions above give.
        shapes: (out, in) of every layer.
        pattern: a ratio.
        group: the comparison group that the masks will be selected by.

    Raises:
        InvalidPatternError: `pattern` is N:M, which fixes the sparsity of every group.
        InvalidSettingError: the targets are too far off for rounding to mend.
    """
    wanted = check_ratio(pattern)
    units = {name: shapes[name][0] if group is ComparisonGroup.ROW else 1 for name in targets}
    sizes = {name: shapes[name][0] * shapes[name][1] for name in targets}
    exact = {name: sizes[name] * ratio / units[name] for name, ratio in targets.items()}
    # The targets' own rounding may put a product just under a whole number.
    whole = {name: math.floor(value * (1 + 1e-12) + 1e-9) for name, value in exact.items()}
    missing = pruned_count(sum(sizes.values()), wanted) - sum(whole[name] * units[name] for name in targets)
    slack = sum(units.values())
    if abs(missing) > slack:
        raise InvalidSettingError(
            "allocation",
            f"targets that make {missing:+,} weights more or fewer than asked",
            f"an overall sparsity of {wanted:g}, up to rounding",
            "Correct the targets: their mean weighted by size is the overall sparsity.",
        )
    # Once round is enough but where a layer has nothing left to give or to take back.
    before = None
    while missing != before and (before is None or missing >= max(units.values())):
        before = missing
        for name in sorted(targets, key=lambda name: whole[name] - exact[name]):
            most = sizes[name] // units[name] - 1
            if missing >= units[name] and whole[name] < most:
                whole[name] += 1
                missing -= units[name]
    while missing < 0 and any(whole.values()):
        for name in sorted(targets, key=lambda name: exact[name] - whole[name]):
            if missing < 0 and whole[name] > 0:
                whole[name] -= 1
                missing += units[name]
    return {name: SparsityPattern(ratio=whole[name] * units[name] / sizes[name]) for name in targets}
