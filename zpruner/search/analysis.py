"""What a search found, for a report: its course, its best formulas, what they are made of, what they resemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zpruner.formula import ARITY, Tree, formula_score
from zpruner.methods import PruningMethod
from zpruner.search.log import Evaluation
from zpruner.types import LayerStats


def fitness_curve(evaluations: Iterable[Evaluation], rung: int | None = None) -> list[tuple[int, float]]:
    """Return (number of evaluations so far, best fitness so far) wherever the best changes, at one rung only.

    Fitness of different rungs is measured on different windows and is not compared; None stands for the highest.
    """
    records = list(evaluations)
    chosen = max((e.rung for e in records), default=0) if rung is None else rung
    curve: list[tuple[int, float]] = []
    for e in records:
        if e.rung == chosen and e.fitness is not None and (not curve or e.fitness < curve[-1][1]):
            curve.append((e.index + 1, e.fitness))
    return curve


def best_formulas(evaluations: Iterable[Evaluation], count: int = 10) -> list[Evaluation]:
    """Return the `count` evaluations of least fitness at the highest rung, best first."""
    records = list(evaluations)
    top = max((e.rung for e in records), default=0)
    finite = [(e.fitness, e.index, e) for e in records if e.rung == top and e.fitness is not None]
    return [e for _, _, e in sorted(finite)[:count]]


def name_frequencies(trees: Iterable[Tree]) -> dict[str, int]:
    """Return how often each operator and terminal occurs; those that do not occur count 0."""
    counts = Counter(node.name for tree in trees for node in tree.walk())
    return {name: counts[name] for name in ARITY}


def score_correlations(
    formulas: Sequence[Tree], known: Mapping[str, PruningMethod], layers: Iterable[tuple[Tensor, LayerStats]]
) -> list[dict[str, float]]:
    """Return for each formula the rank correlation of its scores with those of known methods, averaged over layers.

    Args:
        formulas: what was found.
        known: label -> method.
        layers: each a weight, float (out, in), and its statistics.

    Raises:
        MissingStatisticError: a statistic that a formula or method needs is missing.
    """
    totals = [dict.fromkeys(known, 0.0) for _ in formulas]
    count = 0
    for weight, stats in layers:
        count += 1
        others = {name: _centred_ranks(method.score(weight.float(), stats)) for name, method in known.items()}
        for formula, total in zip(formulas, totals, strict=True):
            ours = _centred_ranks(formula_score(formula, weight, stats))
            for name, theirs in others.items():
                total[name] += _correlation(ours, theirs)
    return [{name: value / count for name, value in total.items()} for total in totals]


def _centred_ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values.flatten(), return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[inverse]
    return ranks - ranks.mean()


def _correlation(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))
