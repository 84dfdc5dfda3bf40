"""Random formulas, crossover and mutation: pure functions of a random generator."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from zpruner.formula import BINARY, UNARY, Tree

_LEAF_SHARE = 0.3


def random_tree(rng: Random, depth: int, terminals: Sequence[str]) -> Tree:
    """Return a formula of exactly `depth` levels of operators; other branches end at random."""
    if depth == 0:
        return Tree(rng.choice(terminals))
    name = rng.choice(UNARY + BINARY)
    if name in UNARY:
        return Tree(name, (random_tree(rng, depth - 1, terminals),))
    children = [random_tree(rng, depth - 1, terminals), _up_to(rng, depth - 1, terminals)]
    rng.shuffle(children)
    return Tree(name, tuple(children))


def crossover(rng: Random, receiver: Tree, donor: Tree) -> Tree:
    """Return `receiver` with a random subtree replaced by a random subtree of `donor`."""
    return receiver.replace(rng.randrange(receiver.size), rng.choice(list(donor.walk())))


def mutate(rng: Random, tree: Tree, terminals: Sequence[str]) -> Tree:
    """Return `tree` with one random node changed.

    Renamed within its arity, replaced by a new subtree of at most two levels, wrapped into a new operator, or (an
    operator) replaced by one of its operands; each kind is equally likely.
    """
    index = rng.randrange(tree.size)
    node = list(tree.walk())[index]
    kind = rng.choice(("rename", "grow", "wrap", "shrink") if node.children else ("rename", "grow", "wrap"))
    if kind == "rename":
        names: Sequence[str] = {0: terminals, 1: UNARY, 2: BINARY}[len(node.children)]
        others = [name for name in names if name != node.name] or [node.name]
        new = Tree(rng.choice(others), node.children)
    elif kind == "grow":
        new = random_tree(rng, rng.randint(0, 2), terminals)
    elif kind == "shrink":
        new = rng.choice(node.children)
    else:
        name = rng.choice(UNARY + BINARY)
        new = Tree(name, (node,) if name in UNARY else (node, _up_to(rng, 1, terminals)))
    return tree.replace(index, new)


def _up_to(rng: Random, depth: int, terminals: Sequence[str]) -> Tree:
    if depth == 0 or rng.random() < _LEAF_SHARE:
        return Tree(rng.choice(terminals))
    return random_tree(rng, rng.randint(1, depth), terminals)
