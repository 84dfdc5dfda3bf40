"""Formulas as text and JSON: both ways the same, and errors that point at the place."""

import json

import pytest
from formula_cases import PUBLISHED, TREES
from hypothesis import given, settings

from zpruner.formula import (
    FormulaError,
    Tree,
    parse_formula,
)
from zpruner.methods import METHODS
from zpruner.methods.expression import Expression
from zpruner.types import Stat


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_text_and_json_round_trip(tree: Tree) -> None:
    assert parse_formula(str(tree)) == tree
    assert parse_formula(tree.to_json()) == tree
    assert parse_formula(json.dumps(tree.to_json(), indent=4)) == tree
    assert parse_formula(" " + str(tree).replace("(", " (\n").replace(",", " , ")) == tree


def test_published_tree_round_trips() -> None:
    tree = parse_formula(PUBLISHED)
    assert str(tree) == "mul(abs(mul(W, W)), mms(G))"
    assert tree.to_json() == PUBLISHED
    assert json.dumps(tree.to_json()) == json.dumps(PUBLISHED)
    assert (tree.depth, tree.size) == (3, 7)


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("mul(abz(W), G)", 5, "Did you mean 'abs'?"),
        ("mul(w, G)", 5, "Did you mean 'W'?"),
        ("mul(W)", 6, "one more operand of mul"),
        ("mul(W, G, X)", 9, "mul takes 2"),
        ("abs(W, G)", 6, "abs takes 1"),
        ("mul(W, W) X", 11, "the end of the formula"),
        ("sqr(W", 6, "closes sqr of column 1"),
        ("sqr(W))", 7, "the end of the formula"),
        ("sqr()", 5, "an operator or terminal"),
        ("sqr W", 5, "'(' after the operator sqr"),
        ("W(G)", 2, "no operands after the terminal"),
        ("mul(W, 2)", 8, "no constants"),
        ("mul(W, -2)", 8, "no constants"),
        ("W * G", 3, "the end of the formula"),
        ("", 1, "an operator or terminal"),
        ("__import__('os')", 1, "an operator or terminal"),
        ('{"data": "W"', 13, "a JSON tree"),
        ("sqr(" * 65 + "W" + ")" * 65, 261, "at most 64 levels"),
    ],
)
def test_errors_point_at_the_character(text: str, column: int, words: str) -> None:
    with pytest.raises(FormulaError, match=f"column {column}") as caught:
        parse_formula(text)
    assert words in str(caught.value)
    assert caught.value.column == column
    formula, caret = str(caught.value).splitlines()[-2:]
    if len(text) < 60:
        assert caret.index("^") - 4 == column - 1
        assert formula[4:] == text
    else:
        assert formula[caret.index("^")] == text[column - 1]


def test_long_formula_shows_the_part_at_fault() -> None:
    text = "add(" * 30 + "W" + ", G)" * 29 + ", Q)"
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    formula, caret = str(caught.value).splitlines()[-2:]
    assert formula[caret.index("^")] == "Q"
    assert len(formula) < 90


@pytest.mark.parametrize(
    ("node", "place", "words"),
    [
        ({"data": "mul", "left": {"data": "W"}, "right": {"data": "sqrtt"}}, "right", "Did you mean 'sqrt'?"),
        ({"data": "abs", "left": {"data": "mul", "left": {"data": "W"}}}, "left, 'mul'", "data, left, right"),
        ({"data": "abs", "left": {"data": "W"}, "right": {"data": "W"}}, "the root, 'abs'", "only left"),
        ({"data": "abs", "left": {"data": "abs", "left": 3}}, "left.left", "got 3"),
        ({"data": 2}, "the root", "got 2"),
        ({"left": {"data": "W"}}, "the root", "no key 'data'"),
        ('{"data": "W", "data": "G"}', "formula tree", "'data' twice"),
        ("[" * 5, "column 1", "operator or terminal"),
    ],
)
def test_json_errors_name_the_node(node: object, place: str, words: str) -> None:
    with pytest.raises(FormulaError) as caught:
        parse_formula(node)
    assert place in str(caught.value)
    assert words in str(caught.value)


def test_deep_json_is_refused() -> None:
    node: dict[str, object] = {"data": "W"}
    for _ in range(65):
        node = {"data": "sqr", "left": node}
    with pytest.raises(FormulaError, match="at most 64"):
        parse_formula(node)
    with pytest.raises(FormulaError, match="at most 64"):
        parse_formula('{"data": "abs", "left": ' * 2500)
    with pytest.raises(FormulaError, match="at most 65,536"):
        parse_formula('{"data": "abs", "left": ' * 100_000)


def test_tree_checks_itself() -> None:
    with pytest.raises(FormulaError, match="1 operands, expected 2"):
        Tree("mul", (Tree("W"),))
    with pytest.raises(FormulaError, match="Did you mean 'tanh'"):
        Tree("tan", (Tree("W"),))


def test_replace_follows_walk() -> None:
    tree = parse_formula("add(sub(W, G), mms(X))")
    for index, node in enumerate(tree.walk()):
        assert tree.replace(index, node) == tree
        assert list(tree.replace(index, Tree("X")).walk())[index] == Tree("X")
    assert str(tree.replace(3, parse_formula("abs(X)"))) == "add(sub(W, abs(X)), mms(X))"


def test_required_names_only_what_is_mentioned() -> None:
    assert Expression(formula="mul(W, W)").required() == frozenset()
    assert Expression(formula="mul(W, sqrt(X))").required() == {Stat.SQ_SUM}
    assert Expression(formula=PUBLISHED).required() == {Stat.GRAD_SQ}
    assert Expression(formula="add(G, X)").required() == {Stat.SQ_SUM, Stat.GRAD_SQ}
    assert METHODS.find("expression") is Expression
    assert Expression(formula=PUBLISHED) == Expression(formula=" mul( abs(mul(W,W)),mms(G) )")
