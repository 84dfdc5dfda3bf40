import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from zpruner.formula import BINARY, UNARY, Tree, parse_formula
from zpruner.search.canonical import canonical, simplify
from zpruner.search.rules import EXACT, NEARLY, Rule, is_nonnegative, is_row, match, rewrite, substitute

LEAVES = st.sampled_from([Tree("W"), Tree("X"), Tree("G")])
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda name, a: Tree(name, (a,)), st.sampled_from(UNARY), inner)
        | st.builds(lambda name, a, b: Tree(name, (a, b)), st.sampled_from(BINARY), inner, inner)
    ),
    max_leaves=6,
)


def value(tree: Tree, seed: int = 0) -> Tensor:
    """The formula in float64, independent of the library's evaluator and not cancelling anything."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"W": (4, 6), "X": (6,), "G": (4, 6)}
    leaves = {name: torch.rand(*shape, generator=g, dtype=torch.float64) * 2 for name, shape in shapes.items()}

    def of(node: Tree) -> Tensor:
        args = [of(child) for child in node.children]
        match node.name:
            case "W" | "X" | "G":
                return leaves[node.name]
            case "skp":
                return args[0]
            case "sqr" | "pow":
                return args[0] ** 2
            case "log":
                return (args[0].abs() + 0.001).log()
            case "sqrt":
                return args[0].abs().sqrt()
            case "exp":
                return args[0].clamp(max=100).exp()
            case "mms":
                return (args[0] - args[0].min()) / (args[0].max() - args[0].min())
            case "zsn":
                return (args[0] - args[0].mean()) / args[0].std()
            case "div":
                x, y = torch.broadcast_tensors(*args)
                return x / y.norm()
            case _:
                return getattr(torch, node.name)(*args)

    return of(tree).expand(4, 6)


def usable(*values: Tensor) -> bool:
    """Finite, of a moderate range, and not constant: rounding noise has no order to keep."""
    return all(bool(v.isfinite().all()) and 1e-6 < float(v.max() - v.min()) < 1e6 for v in values)


def moderate(tree: Tree) -> bool:
    """Every subexpression usable, so that neither clamping nor cancellation hides the value."""
    return all(usable(value(node)) and float(value(node).abs().max()) < 90 for node in tree.walk())


@pytest.mark.parametrize("rule", EXACT, ids=str)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_every_exact_rule_keeps_the_value(rule: Rule, data: st.DataObject) -> None:
    bound = {name: data.draw(TREES, name) for name in rule.left.terminals()}
    if rule.nonnegative and not is_nonnegative(bound["W"]):
        bound["W"] = Tree("abs", (bound["W"],))
    left, right = substitute(rule.left, bound), substitute(rule.right, bound)
    assume(is_row(left) == is_row(right) and all(moderate(tree) for tree in bound.values()))
    a, b = value(left), value(right)
    assume(bool(a.isfinite().all()))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("rule", NEARLY, ids=str)
@settings(max_examples=40, deadline=None)
@given(inner=TREES)
def test_approximate_rules_stay_within_a_thousandth(rule: Rule, inner: Tree) -> None:
    assume(moderate(inner))
    if rule.nonnegative:
        inner = Tree("abs", (inner,))
    a, b = value(substitute(rule.left, {"W": inner})), value(substitute(rule.right, {"W": inner}))
    assert float((a - b).abs().max()) <= 0.001 + 1e-9


def same_order(a: Tensor, b: Tensor) -> bool:
    """Whether no pair of weights that both tell apart clearly is ordered differently."""
    x, y = a.flatten(), b.flatten()
    dx, dy = x[:, None] - x[None], y[:, None] - y[None]
    sure = (dx.abs() > 1e-7 * x.abs().max()) & (dy.abs() > 1e-7 * y.abs().max())
    return bool((dx.sign() == dy.sign())[sure].all())


@settings(max_examples=200, deadline=None)
@given(tree=TREES)
def test_simplify_keeps_the_ranking(tree: Tree) -> None:
    simple = simplify(tree)
    assert simple.size <= tree.size
    assert simplify(simple) == simple
    assume(moderate(tree))
    assert same_order(value(tree), value(simple)), (str(tree), str(simple))


@settings(max_examples=200, deadline=None)
@given(tree=TREES)
def test_canonical_is_idempotent_and_keeps_the_ranking(tree: Tree) -> None:
    form = canonical(tree)
    assert canonical(form) == form
    assert canonical(simplify(tree)) == form
    exact = all(match(rule.left, node) is None for rule in NEARLY for node in simplify(tree).walk())
    approximated = {"exp", "log"} <= {node.name for node in tree.walk()}
    assume(exact and not approximated and moderate(tree))
    assert same_order(value(tree), value(form)), (str(tree), str(form))


@settings(max_examples=150, deadline=None)
@given(tree=TREES)
def test_known_signs_and_shapes_hold(tree: Tree) -> None:
    assume(usable(value(tree)))
    if is_nonnegative(tree):
        assert float(value(tree).min()) >= 0
    assert is_row(rewrite(tree, EXACT)) == is_row(tree)


@pytest.mark.parametrize(
    "formulas",
    [
        ["mul(W, sqrt(X))", "mul(sqrt(X), W)", "mul(sqr(W), X)", "log(mul(X, mul(W, W)))", "mms(mul(W, sqrt(skp(X))))"],
        ["W", "zsn(W)", "exp(W)", "pow(W)", "div(W, G)", "exp(log(W))", "add(W, W)", "sub(add(W, G), G)"],
        ["mul(abs(mul(W, W)), mms(G))", "mul(mms(G), sqr(W))", "mul(mul(W, mms(G)), W)", "mul(W, sqrt(mms(zsn(G))))"],
        ["sub(W, G)", "add(W, neg(G))", "neg(sub(G, W))", "neg(neg(sub(W, G)))", "tanh(sub(W, skp(G)))"],
        ["abs(sub(W, G))", "sqr(sub(G, W))", "sqrt(neg(sub(W, G)))", "log(abs(sub(W, G)))"],
        ["add(W, add(X, G))", "add(add(G, W), X)", "sub(add(X, W), neg(G))"],
        ["mul(tanh(exp(log(W))), G)", "mul(G, tanh(W))", "mul(tanh(log(exp(W))), G)"],
    ],
)
def test_equal_formulas_share_a_form(formulas: list[str]) -> None:
    assert len({canonical(parse_formula(text)) for text in formulas}) == 1


def test_different_formulas_stay_apart() -> None:
    different = [
        "W",
        "neg(W)",
        "X",
        "G",
        "mul(W, X)",
        "mul(W, sqrt(X))",
        "mul(W, mms(X))",
        "mul(W, log(X))",
        "add(W, X)",
        "sub(W, X)",
        "sub(X, W)",
        "abs(sub(X, W))",
        "mul(W, zsn(G))",
        "mul(W, abs(zsn(G)))",
        "mul(W, exp(G))",
        "mul(G, tanh(log(exp(sub(W, G)))))",
        "mul(G, tanh(sub(W, G)))",
        "zsn(add(W, zsn(X)))",
        "add(W, mms(zsn(div(X, W))))",
        "add(W, zsn(div(X, W)))",
    ]
    forms = {text: canonical(parse_formula(text)) for text in different}
    assert len(set(forms.values())) == len(different), forms


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("exp(mms(mul(W, sqrt(X))))", "mul(W, sqrt(X))"),
        ("mul(exp(log(W)), G)", "mul(G, exp(log(W)))"),
        ("sqr(sub(W, G))", "abs(sub(G, W))"),
        ("neg(exp(zsn(W)))", "neg(W)"),
    ],
)
def test_simplify_examples(text: str, simple: str) -> None:
    assert str(simplify(parse_formula(text))) == simple
