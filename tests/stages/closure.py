"""Which files of ours a module's code can run: what it imports, names followed through the rooms' re-exports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import tiny


def imported(file: Path) -> set[Path]:
    """Return `file` and every file of ours that it imports, directly or not, but for re-exporting pages."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += direct(here)
    return {path for path in found if path.name != "__init__.py"}


@cache
def direct(file: Path) -> frozenset[Path]:
    """Return the files that define what `file` imports; imports for type checkers alone are left out."""
    found: set[Path] = set()
    for node in _statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found |= _defining(node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                found |= _as_file(alias.name)
    return frozenset(found)


def _statements(tree: ast.AST) -> list[ast.AST]:
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        found += [node, *_statements(node)]
    return found


def _defining(module: str, name: str) -> set[Path]:
    whole = _as_file(f"{module}.{name}")
    if whole:
        return whole
    found = _as_file(module)
    page = next(iter(found), None)
    if page is None or page.name != "__init__.py":
        return found
    for node in ast.parse(page.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in {a.asname or a.name for a in node.names}:
            return _defining(node.module, name)
    return found


def _as_file(module: str) -> set[Path]:
    path = tiny.REPOSITORY.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if module.split(".")[0] in ("zpruner", "stages") and candidate.is_file():
            return {candidate}
    return set()
