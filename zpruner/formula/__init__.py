"""Pruning formulas as expression trees: read, written and evaluated; their evolution is zpruner.search."""

from zpruner.formula.errors import FormulaError
from zpruner.formula.evaluate import (
    STATISTIC,
    evaluate_formula,
    formula_operands,
    formula_score,
    statistic,
)
from zpruner.formula.parse import parse_formula
from zpruner.formula.tree import ARITY, BINARY, MAX_DEPTH, TERMINALS, UNARY, Tree

__all__ = [
    "ARITY",
    "BINARY",
    "MAX_DEPTH",
    "STATISTIC",
    "TERMINALS",
    "UNARY",
    "FormulaError",
    "Tree",
    "evaluate_formula",
    "formula_operands",
    "formula_score",
    "parse_formula",
    "statistic",
]
