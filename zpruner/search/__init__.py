"""Pruning formulas by genetic programming (Pruner-Zero, arXiv 2406.02924): simplification, search, log, analysis."""

from zpruner.formula import FormulaError, Tree, formula_score, parse_formula
from zpruner.search.analysis import (
    best_formulas,
    fitness_curve,
    name_frequencies,
    score_correlations,
)
from zpruner.search.canonical import canonical, simplify
from zpruner.search.draw import draw_svg, draw_text
from zpruner.search.evolve import Evaluate, SearchError, SearchResult, evolve
from zpruner.search.fitness import Fitness
from zpruner.search.log import Evaluation, Measurement, SearchLog, read_finished_log, read_log

__all__ = [
    "Evaluate",
    "Evaluation",
    "Fitness",
    "FormulaError",
    "Measurement",
    "SearchError",
    "SearchLog",
    "SearchResult",
    "Tree",
    "best_formulas",
    "canonical",
    "draw_svg",
    "draw_text",
    "evolve",
    "fitness_curve",
    "formula_score",
    "name_frequencies",
    "parse_formula",
    "read_finished_log",
    "read_log",
    "score_correlations",
    "simplify",
]
