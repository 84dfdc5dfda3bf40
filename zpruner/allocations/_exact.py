"""From a sparsity wanted of every layer to whole numbers of weights that add up to exactly what is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.masks import pruned_count
from zpruner.types import ComparisonGroup, SparsityPattern


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
