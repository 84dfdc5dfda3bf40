"""Formulas as scores: every operator against float64, and what cannot be computed."""

from typing import Any

import numpy as np
import pytest
import torch
from formula_cases import PUBLISHED, TREES, layer
from hypothesis import given, settings

from zpruner.errors import MissingStatisticError, NonFiniteError, ShapeMismatchError
from zpruner.formula import (
    ARITY,
    BINARY,
    UNARY,
    Tree,
    evaluate_formula,
    formula_operands,
    formula_score,
    parse_formula,
)
from zpruner.methods import METHODS
from zpruner.methods.expression import Expression
from zpruner.methods.pruner_zero import PrunerZero
from zpruner.types import LayerStats


def reference(tree: Tree, values: dict[str, np.ndarray]) -> np.ndarray:
    """The operators again, in float64 numpy, straight from the paper's list."""
    args = [reference(child, values) for child in tree.children]
    with np.errstate(all="ignore"):
        match tree.name, args:
            case (("sqr" | "pow"), [x]):
                return x**2
            case "neg", [x]:
                return -x
            case "abs", [x]:
                return np.abs(x)
            case "log", [x]:
                return np.log(np.abs(x) + 0.001)
            case "exp", [x]:
                return np.exp(np.minimum(x, 100.0))
            case "sqrt", [x]:
                return np.sqrt(np.abs(x))
            case "tanh", [x]:
                return np.tanh(x)
            case "skp", [x]:
                return x
            case "mms", [x]:
                return (x - x.min()) / (np.ptp(x) or 1.0)
            case "zsn", [x]:
                return (x - x.mean()) / (x.std(ddof=1) or 1.0)
            case "add", [x, y]:
                return x + y
            case "sub", [x, y]:
                return x - y
            case "mul", [x, y]:
                return x * y
            case "div", [x, y]:
                x, y = np.broadcast_arrays(x, y)
                return x / np.sqrt((y**2).sum())
    return values[tree.name]


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("inner", ["W", "X", "G", "sub(W, G)", "sub(X, W)"])
def test_unary_operators_match_float64(name: str, inner: str) -> None:
    check_value(f"{name}({inner})")


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("operands", ["W, G", "W, X", "X, W", "X, X", "neg(X), sqr(W)", "sub(W, G), sub(W, G)"])
def test_binary_operators_match_float64(name: str, operands: str) -> None:
    if f"{name}({operands})" not in ("sub(X, X)", "sub(sub(W, G), sub(W, G))"):
        check_value(f"{name}({operands})")


def check_value(text: str, seed: int = 0) -> None:
    weight, stats = layer(seed=seed)
    assert stats.sq_sum is not None
    assert stats.grad_sq is not None
    values = {
        "W": weight.double().abs().numpy(),
        "X": (stats.sq_sum.double() / 3).numpy(),
        "G": (100 * stats.grad_sq.double().sqrt()).numpy(),
    }
    expected = np.broadcast_to(reference(parse_formula(text), values), weight.shape)
    got = formula_score(parse_formula(text), weight, stats)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=2e-5, atol=2e-5)


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_shared_and_reused_temporaries_change_nothing(tree: Tree) -> None:
    weight, stats = layer()
    operands = formula_operands(tree, weight, stats)
    before = {name: value.clone() for name, value in operands.items()}

    def plain(node: Tree) -> torch.Tensor:
        # One node at a time: no common subexpression, no buffer to reuse.
        args = {name: plain(child) for name, child in zip("WG", node.children, strict=False)}
        return evaluate_formula(Tree(node.name, tuple(map(Tree, args))), args) if args else operands[node.name].clone()

    torch.testing.assert_close(evaluate_formula(tree, operands), plain(tree), equal_nan=True, rtol=0, atol=0)
    for name, value in operands.items():
        assert torch.equal(value, before[name])


def test_pruner_zero_is_the_published_formula() -> None:
    weight, stats = layer()
    assert stats.grad_sq is not None
    g = stats.grad_sq.double().sqrt()
    expected = weight.double() ** 2 * (g - g.min()) / (g.max() - g.min())
    got = PrunerZero().score(weight, stats)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got, Expression(formula=PUBLISHED).score(weight, stats), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_wanda_and_magnitude_as_formulas(seed: int) -> None:
    weight, stats = layer(24, 40, seed)
    for formula, name in (("mul(W, sqrt(X))", "wanda"), ("W", "magnitude")):
        method: Any = METHODS.find(name)()
        ours = Expression(formula=formula).score(weight, stats)
        theirs = method.score(weight, stats)
        for got, want in ((ours, theirs), (ours.flatten()[None], theirs.flatten()[None])):
            drop = got.shape[1] // 2
            a = torch.argsort(got, dim=1, stable=True)[:, :drop].sort(dim=1).values
            b = torch.argsort(want, dim=1, stable=True)[:, :drop].sort(dim=1).values
            assert torch.equal(a, b), name


def test_result_is_a_matrix_of_its_own() -> None:
    weight, stats = layer()
    scores = Expression(formula="X").score(weight, stats)
    assert scores.shape == weight.shape
    assert scores.is_contiguous()
    before = weight.clone()
    Expression(formula="W").score(weight, stats).zero_()
    scores.zero_()
    assert torch.equal(weight, before)
    assert float(stats.squared_norm().sum()) > 0


def test_overflow_and_zero_norm_are_errors() -> None:
    weight, stats = layer()
    with pytest.raises(NonFiniteError, match=r"blocks\.0\.up, formula exp"):
        Expression(formula="exp(exp(exp(add(X, W))))").score(weight * 30, stats)
    with pytest.raises(NonFiniteError, match="35 scores"):
        Expression(formula="div(W, sub(G, G))").score(weight, stats)
    with pytest.raises(NonFiniteError):
        # An infinite norm would make every score 0, which ranks nothing.
        Expression(formula="div(W, exp(X))").score(weight, LayerStats("l", 1, 1, sq_sum=torch.full((7,), 95.0)))


@pytest.mark.parametrize("formula", ["mms(sub(W, W))", "zsn(sub(X, X))", "zsn(exp(sub(W, W)))"])
def test_constant_operands_scale_to_zero(formula: str) -> None:
    weight, stats = layer(33, 31)
    assert not Expression(formula=formula).score(weight, stats).any()


def test_missing_and_misfitting_statistics() -> None:
    weight, _ = layer()
    with pytest.raises(MissingStatisticError, match="grad_sq"):
        PrunerZero().score(weight, LayerStats("blocks.0.up", 1, 1))
    with pytest.raises(ShapeMismatchError, match="sq_sum of shape"):
        Expression(formula="X").score(weight, LayerStats("blocks.0.up", 1, 1, sq_sum=torch.ones(8)))
    with pytest.raises(ShapeMismatchError, match=r"\(1, 7\)"):
        PrunerZero().score(weight, LayerStats("blocks.0.up", 1, 1, grad_sq=torch.ones(1, 7)))


def test_every_operator_has_an_arity() -> None:
    assert len(ARITY) == len(UNARY) + len(BINARY) + 3
