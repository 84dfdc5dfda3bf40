"""What a search found, for a report: its course, its best formulas, what they are made of, what they resemble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zpruner.errors import ShapeMismatchError
from zpruner.methods._formula import ARITY, Tree, evaluate_formula
from zpruner.search.log import Evaluation


def fitness_curve(evaluations: Iterable[Evaluation]) -> list[tuple[int, float]]:
    """Return (number of evaluations so far, best fitness so far) wherever the best changes, at the highest rung only.

    Fitness of different rungs is measured on different windows and is not compared.
    """
    records = list(evaluations)
    top = max((e.rung for e in records), default=0)
    curve: list[tuple[int, float]] = []
    for e in records:
        if e.rung == top and e.fitness is not None and (not curve or e.fitness < curve[-1][1]):
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


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two tensors, with average ranks for ties; NaN if one is constant.

    Raises:
        ShapeMismatchError: different shapes.
    """
    if a.shape != b.shape:
        raise ShapeMismatchError(
            "rank correlation", f"shapes {tuple(a.shape)} and {tuple(b.shape)}", "one shape", "Score the same layer."
        )
    x, y = (_centred_ranks(t.flatten()) for t in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


def formula_correlations(
    tree: Tree, known: Mapping[str, Tree], operands: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """Return the rank correlation of the formula's scores with those of known formulas, averaged over layers.

    Args:
        tree: the formula.
        known: label -> formula, e.g. {"wanda": parse_formula("mul(W, sqrt(X))")}.
        operands: for each layer W and G (out, in) and X (in,), float32.
    """
    totals = dict.fromkeys(known, 0.0)
    for layer in operands:
        shape = layer["W"].shape
        scores = evaluate_formula(tree, layer).expand(shape)
        for label, other in known.items():
            totals[label] += rank_correlation(scores, evaluate_formula(other, layer).expand(shape)) / len(operands)
    return totals


def _centred_ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts.double() - 1) / 2)[inverse]
    return ranks - ranks.mean()
