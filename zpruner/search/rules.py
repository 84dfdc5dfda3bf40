"""Rewrite rules between formulas of equal value: the opposing-operation simplification of Pruner-Zero.

A rule is a pair of formulas in which W, X and G stand for any subformulas. EXACT rules keep the value up to float
rounding wherever the left side is finite. NEARLY rules keep it up to 0.001 and serve to tell formulas apart only: with
log(x) = log(abs(x) + 0.001), exp(log(x)) is abs(x) + 0.001, and log(exp(x)) exceeds an x >= 0 by at most 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from zpruner.formula import Tree, parse_formula

EVEN = ("abs", "sqr", "sqrt", "log")
"""Operators that ignore their operand's sign (log and sqrt take the absolute value first)."""


@dataclass(frozen=True)
class Rule:
    """`left` may be replaced by `right`; with `nonnegative`, only where what W stands for is never negative."""

    left: Tree
    right: Tree
    nonnegative: bool = False

    def __str__(self) -> str:
        return f"{self.left} -> {self.right}"


def _rules(*pairs: tuple[str, str], nonnegative: bool = False) -> tuple[Rule, ...]:
    return tuple(Rule(parse_formula(left), parse_formula(right), nonnegative) for left, right in pairs)


EXACT: tuple[Rule, ...] = (
    *_rules(("abs(W)", "W"), nonnegative=True),
    *(rule for name in EVEN for rule in _rules((f"{name}(neg(W))", f"{name}(W)"), (f"{name}(abs(W))", f"{name}(W)"))),
    *_rules(
        ("skp(W)", "W"),
        ("pow(W)", "sqr(W)"),
        ("mul(W, W)", "sqr(W)"),
        ("sqr(sqrt(W))", "abs(W)"),
        ("sqrt(sqr(W))", "abs(W)"),
        ("neg(neg(W))", "W"),
        ("add(W, neg(X))", "sub(W, X)"),
        ("add(neg(W), X)", "sub(X, W)"),
        ("sub(W, neg(X))", "add(W, X)"),
        ("sub(neg(W), X)", "neg(add(W, X))"),
        ("neg(sub(W, X))", "sub(X, W)"),
        ("mul(neg(W), X)", "neg(mul(W, X))"),
        ("mul(W, neg(X))", "neg(mul(W, X))"),
        ("div(neg(W), X)", "neg(div(W, X))"),
        ("div(W, neg(X))", "div(W, X)"),
        ("div(W, abs(X))", "div(W, X)"),
        ("tanh(neg(W))", "neg(tanh(W))"),
        ("zsn(neg(W))", "neg(zsn(W))"),
        ("mms(mms(W))", "mms(W)"),
        ("mms(zsn(W))", "mms(W)"),
        ("zsn(mms(W))", "zsn(W)"),
        ("zsn(zsn(W))", "zsn(W)"),
        ("mms(div(W, X))", "mms(W)"),
        ("zsn(div(W, X))", "zsn(W)"),
        ("mms(add(W, W))", "mms(W)"),
        ("zsn(add(W, W))", "zsn(W)"),
        ("add(W, sub(X, X))", "W"),
        ("add(sub(X, X), W)", "W"),
        ("sub(W, sub(X, X))", "W"),
        ("sub(sub(X, X), W)", "neg(W)"),
        ("sub(add(W, X), X)", "W"),
        ("sub(add(X, W), X)", "W"),
        ("add(sub(W, X), X)", "W"),
    ),
)
NEARLY: tuple[Rule, ...] = (
    *_rules(("exp(log(W))", "abs(W)")),
    *_rules(("log(exp(W))", "W"), nonnegative=True),
)


def is_nonnegative(tree: Tree) -> bool:
    """Return whether the value of `tree` is known to be >= 0 everywhere."""
    match tree.name:
        case "W" | "X" | "G" | "abs" | "sqr" | "pow" | "sqrt" | "exp" | "mms":
            return True
        case "skp" | "tanh" | "div":
            return is_nonnegative(tree.children[0])
        case "add":
            return all(map(is_nonnegative, tree.children))
        case "mul":
            return tree.children[0] == tree.children[1] or all(map(is_nonnegative, tree.children))
    return False


def is_row(tree: Tree) -> bool:
    """Return whether the value is a row vector: only X is mentioned."""
    return tree.terminals() == {"X"}


def rewrite(tree: Tree, rules: tuple[Rule, ...], normal: Callable[[Tree], Tree] = lambda node: node) -> Tree:
    """Apply `rules`, and then `normal` to every node, from the leaves up until nothing changes at a node.

    A rule that would turn a matrix into a row vector is not applied: mms, zsn and div tell them apart.
    """
    tree = Tree(tree.name, tuple(rewrite(child, rules, normal) for child in tree.children))
    for rule in _by_root(rules).get(tree.name, ()):
        bound = match(rule.left, tree)
        if bound is None or (rule.nonnegative and not is_nonnegative(bound["W"])):
            continue
        new = substitute(rule.right, bound)
        if is_row(new) == is_row(tree):
            return rewrite(new, rules, normal)
    return normal(tree)


@cache
def _by_root(rules: tuple[Rule, ...]) -> dict[str, list[Rule]]:
    grouped: dict[str, list[Rule]] = {}
    for rule in rules:
        grouped.setdefault(rule.left.name, []).append(rule)
    return grouped


def match(pattern: Tree, tree: Tree) -> dict[str, Tree] | None:
    """Return what W, X and G of `pattern` stand for in `tree`, or None where it does not fit."""
    bound: dict[str, Tree] = {}

    def fits(part: Tree, node: Tree) -> bool:
        if not part.children:
            return bound.setdefault(part.name, node) == node
        pairs: Iterable[tuple[Tree, Tree]] = zip(part.children, node.children, strict=False)
        return part.name == node.name and all(fits(a, b) for a, b in pairs)

    return bound if fits(pattern, tree) else None


def substitute(pattern: Tree, bound: dict[str, Tree]) -> Tree:
    """Return `pattern` with W, X and G replaced by what they stand for."""
    if not pattern.children:
        return bound[pattern.name]
    return Tree(pattern.name, tuple(substitute(child, bound) for child in pattern.children))
