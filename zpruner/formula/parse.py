"""Strict readers of the text form and of the published JSON form; neither evaluates anything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice

from zpruner.errors import shown
from zpruner.formula.errors import FormulaError, error_at
from zpruner.formula.tree import ARITY, MAX_DEPTH, MAX_SIZE, Tree, suggestion

_LONGEST = 1 << 16
_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|[0-9.]+|\S|$)")


def parse_formula(formula: str | Mapping[str, object]) -> Tree:
    """Read a formula: text `mul(W, sqrt(X))`, a JSON tree as text, or a JSON tree already loaded.

    Raises:
        FormulaError: with the column and a caret for text, with the place in the tree for JSON.
    """
    if isinstance(formula, Mapping):
        return _bounded(_from_json(formula, "the root", 0))
    if len(formula) > _LONGEST:
        raise FormulaError(
            "formula", f"{len(formula):,} characters", f"at most {_LONGEST:,}", "Write a shorter formula."
        )
    if formula.lstrip().startswith("{"):
        return _bounded(_from_json(_load_json(formula), "the root", 0))
    return _bounded(_Parser(formula).whole())


def _bounded(tree: Tree) -> Tree:
    if (size := tree.size) > MAX_SIZE:
        raise FormulaError("formula", f"{size:,} operators and terminals", f"at most {MAX_SIZE:,}", "Write fewer.")
    return tree


class _Parser:
    """Recursive descent over one text: formula = terminal | operator "(" formula ("," formula)* ")"."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.token, self.start = "", 0
        self._end = 0
        self._advance()

    def whole(self) -> Tree:
        tree = self._formula(0)
        if self.token:
            raise self._error("the end of the formula", "Delete what follows, or combine both with an operator.")
        return tree

    def _advance(self) -> None:
        match = _TOKEN.match(self.text, self._end)
        assert match is not None, "the pattern matches anything, and the empty end"
        self.token, self.start, self._end = match[1], match.start(1), match.end(1)

    def _formula(self, depth: int) -> Tree:
        name, start = self.token, self.start
        if not re.match(r"[A-Za-z_]", name):
            numeric = bool(re.match(r"[-+0-9.]", name))
            action = "The grammar has no constants." if numeric else "Write terminals W, X, G and operators name(...)."
            raise self._error("an operator or terminal", action)
        if name not in ARITY:
            raise self._error("an operator or terminal", suggestion(name))
        if depth > MAX_DEPTH:
            raise self._error(f"at most {MAX_DEPTH} levels", "Write a shallower formula.")
        self._advance()
        if ARITY[name] == 0:
            if self.token == "(":
                raise self._error(f"no operands after the terminal {name}", "Delete the parentheses.")
            return Tree(name)
        self._expect("(", f"'(' after the operator {name}", f"Write {_usage(name)}.")
        children = [self._formula(depth + 1)]
        while self.token == ",":
            if len(children) == ARITY[name]:
                raise self._error(f"')': {name} takes {ARITY[name]}", f"Write {_usage(name)}.")
            self._advance()
            children.append(self._formula(depth + 1))
        if len(children) < ARITY[name]:
            raise self._error(f"',' and one more operand of {name}", f"Write {_usage(name)}.")
        self._expect(")", f"')' that closes {name} of column {start + 1}", "Balance the parentheses.")
        return Tree(name, tuple(children))

    def _expect(self, token: str, expected: str, action: str) -> None:
        if self.token != token:
            raise self._error(expected, action)
        self._advance()

    def _error(self, expected: str, action: str) -> FormulaError:
        got = f"'{self.token}'" if self.token else "the end of the text"
        return error_at(self.text, self.start, got, expected, action)


def _usage(name: str) -> str:
    return f"{name}(x, y)" if ARITY[name] == 2 else f"{name}(x)"


def _load_json(text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        node: dict[str, object] = {}
        for key, value in pairs:
            if key in node:
                raise FormulaError(
                    "formula tree", f"the key {shown(key)} twice", "each key once per node", "Delete one."
                )
            node[key] = value
        return node

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise error_at(text, error.pos, error.msg, "a JSON tree", "Correct the JSON.") from None
    except RecursionError:
        raise _too_deep("the root") from None
    except ValueError:  # of Python's: a number of thousands of digits
        raise FormulaError("formula tree", "a number", 'nodes {"data": ...}', "The grammar has no constants.") from None


def _from_json(node: object, place: str, depth: int) -> Tree:
    if not isinstance(node, Mapping):
        raise FormulaError(
            f"formula tree, {place}", shown(node), 'a node {"data": ...}', "Write each node as a JSON object."
        )
    if depth > MAX_DEPTH:
        raise _too_deep(place)
    name = node.get("data")
    if not isinstance(name, str) or name not in ARITY:
        got = "no key 'data'" if "data" not in node else shown(name)
        hint = suggestion(name) if isinstance(name, str) else 'Name the node under "data".'
        raise FormulaError(f"formula tree, {place}", got, "an operator or terminal", hint)
    sides = ("left", "right")[: ARITY[name]]
    if set(node) != {"data", *sides}:
        raise FormulaError(
            f"formula tree, {place}, '{name}'",
            f"the keys {', '.join(map(str, islice(node, 8)))}",
            f"{', '.join(('data', *sides))}",
            f"'{name}' takes {ARITY[name]} operands: a unary node has only left, a terminal neither.",
        )
    inner = "" if place == "the root" else f"{place}."
    return Tree(name, tuple(_from_json(node[side], f"{inner}{side}", depth + 1) for side in sides))


def _too_deep(place: str) -> FormulaError:
    return FormulaError(
        f"formula tree, {place}", "a deeper tree", f"at most {MAX_DEPTH} levels", "Write a shallower formula."
    )
