from random import Random

import pytest

from zpruner.formula import Tree, parse_formula
from zpruner.search.variation import crossover, mutate, random_tree


@pytest.mark.parametrize("depth", range(5))
def test_random_trees_have_the_depth_asked_for(depth: int) -> None:
    rng = Random(depth)
    trees = [random_tree(rng, depth, ("W", "X")) for _ in range(200)]
    assert {tree.depth for tree in trees} == {depth}
    assert {name for tree in trees for name in tree.terminals()} == {"W", "X"}
    assert len(set(trees)) > (100 if depth > 2 else 1)


def test_crossover_takes_material_of_both() -> None:
    rng = Random(0)
    one, other = parse_formula("add(W, mul(W, W))"), parse_formula("sub(X, div(X, X))")
    children = {str(crossover(rng, one, other)) for _ in range(200)}
    assert "add(W, mul(X, W))" in children
    assert "add(W, sub(X, div(X, X)))" in children
    assert all("X" in child for child in children)
    # Every place of the one (5 nodes) with every distinct part of the other (X, div, the whole).
    assert len(children) == 5 * 3


def test_mutation_changes_one_place() -> None:
    rng = Random(1)
    tree = parse_formula("mul(W, sqrt(X))")
    mutants = {str(mutate(rng, tree, ("W", "X", "G"))) for _ in range(600)}
    assert {"mul(W, sqrt(G))", "mul(G, sqrt(X))", "add(W, sqrt(X))", "mul(W, X)", "mul(W, log(X))", "W"} <= mutants
    assert "neg(mul(W, sqrt(X)))" in mutants
    assert all(abs(Tree.depth.fget(parse_formula(m)) - 2) <= 3 for m in mutants)  # type: ignore[attr-defined]


def test_a_lone_terminal_can_be_mutated() -> None:
    rng = Random(2)
    assert all(mutate(rng, Tree("W"), ("W",)).terminals() == {"W"} for _ in range(50))
