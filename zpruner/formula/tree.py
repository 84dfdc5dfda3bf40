"""The expression tree of a pruning formula (Pruner-Zero, arXiv 2406.02924)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zpruner.errors import did_you_mean
from zpruner.formula.errors import FormulaError

TERMINALS: tuple[str, ...] = ("W", "X", "G")
"""Absolute weight, squared input norm (a row vector), gradient norm."""
UNARY: tuple[str, ...] = ("sqr", "neg", "abs", "log", "exp", "sqrt", "tanh", "pow", "skp", "mms", "zsn")
BINARY: tuple[str, ...] = ("add", "sub", "mul", "div")
ARITY: dict[str, int] = {**dict.fromkeys(TERMINALS, 0), **dict.fromkeys(UNARY, 1), **dict.fromkeys(BINARY, 2)}
MAX_DEPTH = 64
"""Deeper formulas are refused by the parsers."""
MAX_SIZE = 4096
"""Formulas of more nodes are."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A terminal, or an operator with its operands; `str` gives the text form, `mul(W, sqrt(X))`.

    Raises:
        FormulaError: an unknown name, or a number of children that is not the operator's arity.
    """

    name: str
    children: tuple[Tree, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in ARITY:
            raise FormulaError("formula", f"'{self.name}'", "an operator or terminal", suggestion(self.name))
        if len(self.children) != ARITY[self.name]:
            raise FormulaError(
                f"formula, '{self.name}'",
                f"{len(self.children)} operands",
                f"{ARITY[self.name]}",
                "Give the operator as many operands as it takes.",
            )

    @property
    def depth(self) -> int:
        """Levels of operators: 0 for a terminal, 3 for `mul(abs(mul(W, W)), mms(G))`."""
        return 1 + max(child.depth for child in self.children) if self.children else 0

    @property
    def size(self) -> int:
        """Number of nodes."""
        return 1 + sum(child.size for child in self.children)

    def walk(self) -> Iterator[Tree]:
        """Yield every node, parents before children, left to right."""
        yield self
        for child in self.children:
            yield from child.walk()

    def terminals(self) -> frozenset[str]:
        """Return the terminals that the formula mentions."""
        return frozenset(node.name for node in self.walk() if not node.children)

    def replace(self, index: int, new: Tree) -> Tree:
        """Return the tree with the node that `walk` yields at `index` replaced by `new`."""
        if index == 0:
            return new
        children = list(self.children)
        index -= 1
        for position, child in enumerate(children):
            if index < child.size:
                children[position] = child.replace(index, new)
                break
            index -= child.size
        return Tree(self.name, tuple(children))

    def to_json(self) -> dict[str, object]:
        """Return the published JSON form: {"data": name, "left": {...}, "right": {...}}."""
        node: dict[str, object] = {"data": self.name}
        for side, child in zip(("left", "right"), self.children, strict=False):
            node[side] = child.to_json()
        return node

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.children))})" if self.children else self.name


def suggestion(name: str) -> str:
    """Return "Did you mean ...?" for an unknown operator or terminal; upper and lower case are told apart."""
    for known in (name.upper(), name.lower()):
        if known in ARITY:
            return f"Did you mean '{known}'?"
    return did_you_mean(name, ARITY)
