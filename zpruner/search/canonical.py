"""The canonical form: formulas that rank the weights of a layer alike share it, so that one evaluation serves all."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import reduce
from math import gcd, lcm

from zpruner.formula import Tree
from zpruner.search.rules import EVEN, EXACT, NEARLY, is_nonnegative, is_row, rewrite

_INCREASING = ("mms", "zsn", "tanh", "exp", "skp", "div")
"""Increasing in their first operand (the mean, the range and the norm are numbers of the whole matrix, positive)."""
_ALL = EXACT + NEARLY
_POWER = {"mul": Fraction(1), "abs": Fraction(1), "sqr": Fraction(2), "sqrt": Fraction(1, 2)}


def simplify(tree: Tree) -> Tree:
    """Return a shorter formula that gives the same masks, within every row and within every layer.

    Values are rewritten by rules that hold exactly (zpruner.search.rules.EXACT); operators at the root that only
    stretch the scores (mms, exp, log of a non-negative value, ...) are dropped. Where such an operator would have
    rounded different scores to one (tanh of large values), the shorter formula still tells them apart. Not meant for
    scores compared between layers, where the root's scaling matters.
    """
    return _fixed_point(lambda t: _strip_root(rewrite(t, EXACT, _ordered)), tree)


def canonical(tree: Tree) -> Tree:
    """Return the form that tells formulas apart: equal for formulas with the same masks, as far as the rules see.

    Beyond `simplify`: sums and products are flattened and sorted, powers in a product of non-negative factors at the
    root are reduced (`mul(W, sqrt(X))` and `mul(sqr(W), X)` rank alike), and exp and log cancel although the result
    differs by up to 0.001 (zpruner.search.rules.NEARLY). It is never evaluated. Idempotent.
    """

    def once(t: Tree) -> Tree:
        return _reduce_powers(_strip_root(rewrite(t, _ALL, lambda n: _ordered(_flattened(n)))))

    return _fixed_point(once, tree)


def _fixed_point(step: Callable[[Tree], Tree], tree: Tree) -> Tree:
    seen: list[Tree] = []
    while tree not in seen:
        seen.append(tree)
        tree = step(tree)
    # Of a cycle of equal formulas, always the same one.
    return min(seen[seen.index(tree) :], key=_order)


def _order(tree: Tree) -> tuple[int, str]:
    return tree.size, str(tree)


def _ordered(tree: Tree) -> Tree:
    """Sort the operands where their order does not matter, bit for bit."""
    if tree.name in ("add", "mul"):
        return Tree(tree.name, tuple(sorted(tree.children, key=_order)))
    if tree.name in EVEN and tree.children[0].name == "sub":
        return Tree(tree.name, (_sorted_sub(tree.children[0]),))
    if tree.name == "div" and tree.children[1].name == "sub":
        return Tree("div", (tree.children[0], _sorted_sub(tree.children[1])))
    return tree


def _sorted_sub(tree: Tree) -> Tree:
    return Tree("sub", tuple(sorted(tree.children, key=_order)))


def _strip_root(tree: Tree) -> Tree:
    """Drop what keeps the order of the scores; below a neg, what keeps it reversed."""
    if tree.name == "neg":
        return Tree("neg", (_strip_root(tree.children[0]),))
    if tree.name in _INCREASING or (tree.name == "add" and tree.children[0] == tree.children[1]):
        return _strip_root(tree.children[0])
    if tree.name in ("sqr", "pow", "sqrt", "log"):
        inner = tree.children[0]
        return _strip_root(inner) if is_nonnegative(inner) else Tree("abs", (inner,))
    return tree


def _flattened(tree: Tree) -> Tree:
    """Return a sum as sub(sorted terms, sorted terms), a product as sorted powers."""
    if tree.name in ("add", "sub", "neg"):
        return _same_shape(_sum(_terms(tree), tree), tree)
    if tree.name in ("mul", "sqr"):
        powers: Counter[Tree] = Counter()
        _collect_factors(tree, 1, powers)
        return _same_shape(_product(powers), tree)
    if tree.name in ("mms", "zsn"):
        return _same_shape(Tree(tree.name, (_unscaled(tree.children[0]),)), tree)
    return tree


def _terms(tree: Tree) -> Counter[Tree]:
    terms: Counter[Tree] = Counter()
    _collect_terms(tree, 1, terms)
    return terms


def _sum(terms: Counter[Tree], like: Tree) -> Tree:
    plus = _chain("add", sorted((+terms).elements(), key=_order))
    minus = _chain("add", sorted((-terms).elements(), key=_order))
    if plus and minus:
        return Tree("sub", (plus, minus))
    if minus:
        return Tree("neg", (minus,))
    zero = Tree("X") if is_row(like) else Tree("W")
    return plus or Tree("sub", (zero, zero))


def _unscaled(tree: Tree) -> Tree:
    """Return a sum divided by what all its terms are multiples of, where only the order of values matters."""
    terms = _terms(tree)
    common = gcd(*terms.values())
    return _sum(Counter({term: n // common for term, n in terms.items()}), tree) if common > 1 else tree


def _same_shape(new: Tree, old: Tree) -> Tree:
    return new if is_row(new) == is_row(old) else old


def _collect_terms(tree: Tree, sign: int, terms: Counter[Tree]) -> None:
    if tree.name in ("add", "sub", "neg"):
        _collect_terms(tree.children[0], -sign if tree.name == "neg" else sign, terms)
        for child in tree.children[1:]:
            _collect_terms(child, sign if tree.name == "add" else -sign, terms)
    else:
        terms[tree] += sign


def _collect_factors(tree: Tree, power: int, powers: Counter[Tree]) -> None:
    if tree.name == "mul":
        for child in tree.children:
            _collect_factors(child, power, powers)
    elif tree.name == "sqr":
        _collect_factors(tree.children[0], 2 * power, powers)
    else:
        powers[tree] += power


def _product(powers: dict[Tree, int]) -> Tree:
    factors = _chain("mul", sorted((_power(base, n) for base, n in powers.items()), key=_order))
    assert factors is not None, "a product has factors"
    return factors


def _power(base: Tree, n: int) -> Tree:
    if n == 1:
        return base
    return Tree("sqr", (_power(base, n // 2),)) if n % 2 == 0 else Tree("mul", (base, _power(base, n - 1)))


def _chain(name: str, operands: list[Tree]) -> Tree | None:
    return reduce(lambda left, right: Tree(name, (left, right)), operands) if operands else None


def _reduce_powers(tree: Tree) -> Tree:
    """Return a root product of non-negative factors with coprime integer powers; anything else as it is."""
    tree = _unscaled(tree)
    if tree.name == "neg":
        return Tree("neg", (_reduce_powers(tree.children[0]),))
    powers = _root_powers(tree, False)
    if powers is None:
        return tree
    scale = lcm(*(p.denominator for p in powers.values()))
    whole = {base: int(p * scale) for base, p in powers.items()}
    common = gcd(*whole.values())
    return _product({_absolute(base): n // common for base, n in whole.items()})


def _absolute(base: Tree) -> Tree:
    return base if is_nonnegative(base) else Tree("abs", (base,))


def _root_powers(tree: Tree, absolute: bool) -> dict[Tree, Fraction] | None:
    """Return {base: power} of a product that ranks as `tree` does, or None where a factor may be negative."""
    if tree.name == "div":
        return _root_powers(tree.children[0], absolute)
    if (unscaled := _unscaled(tree)) != tree:
        return _root_powers(unscaled, absolute)
    if tree.name in _POWER:
        parts = [_root_powers(child, absolute or tree.name != "mul") for child in tree.children]
        powers: defaultdict[Tree, Fraction] = defaultdict(Fraction)
        for part in parts:
            if part is None:
                return None
            for base, power in part.items():
                powers[base] += power * _POWER[tree.name]
        return powers
    return {tree: Fraction(1)} if absolute or is_nonnegative(tree) else None
