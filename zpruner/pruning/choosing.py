"""The mask of one layer: by scores or by a solver, as the inputs lie or gathered in an order in which more stays."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from zpruner.masks import arrange_columns, select
from zpruner.methods import MaskSolver, PruningMethod
from zpruner.pruning.composition_parts import CompositionParts
from zpruner.types import LayerStats, Mask, ScoreMatrix, SparsityPattern, check_weight


def score(parts: CompositionParts, weight: Tensor, stats: LayerStats) -> ScoreMatrix:
    """Return the importance of every weight, checked; only where the composition does not solve.

    Args:
        weight: float (out, in).
        stats: of the layer's input.

    Raises:
        NonFiniteError: NaN or infinity in the weights or scores; names the layer.
        ShapeMismatchError: statistics of another width than the weight's.
    """
    if not isinstance(parts.method, PruningMethod):
        raise TypeError(f"layer {stats.layer}: a solver has no scores")
    check_weight(weight, stats)
    return ScoreMatrix(stats.layer, parts.method.score(weight.float(), stats))


def choose(
    parts: CompositionParts,
    weight: Tensor,
    stats: LayerStats,
    pattern: SparsityPattern,
    scores: ScoreMatrix | None,
    seen: LayerStats,
) -> tuple[Mask, Tensor | None]:
    """Return the mask, and the weights that a solver found on it; `seen` is what a solver reads.

    Where inputs are gathered, all of it happens in an order in which more can stay, found from the scores, for a
    solver from `W^2 a`.
    """
    if not parts.gathers(pattern):
        return _choose_as_it_lies(parts, weight, stats, pattern, scores, seen)
    if parts.solves:
        values = weight.float().square() * stats.squared_norm()
    else:
        scores = scores or score(parts, weight, stats)
        values = scores.values
    order = arrange_columns(values, pattern)
    if scores is not None:
        scores = ScoreMatrix(scores.layer, values[:, order])
    mask, solved = _choose_as_it_lies(
        parts, weight[:, order], stats.reordered(order), pattern, scores, seen.reordered(order)
    )
    back = order.argsort()
    mask = replace(mask, keep=mask.keep[:, back], order=order)
    return mask, None if solved is None else solved[:, back]


def _choose_as_it_lies(
    parts: CompositionParts,
    weight: Tensor,
    stats: LayerStats,
    pattern: SparsityPattern,
    scores: ScoreMatrix | None,
    seen: LayerStats,
) -> tuple[Mask, Tensor | None]:
    solved = None
    if isinstance(parts.method, MaskSolver):
        check_weight(weight, stats)
        found = parts.method.solve(weight.float(), seen, pattern)
        mask, solved = Mask(stats.layer, found.keep, found.chosen), found.weight
    else:
        values = (scores or score(parts, weight, stats)).values
        mask = Mask(stats.layer, select(values, pattern, parts.group, stats.layer))
    if parts.refinement is None:
        return mask, solved
    return replace(mask, keep=parts.refinement.refine(weight.float(), mask.keep, seen, pattern)), None
