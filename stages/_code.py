"""Which code decides a result: every definition that a function reaches, digested without comments and docstrings.

A definition is a function, a class or a constant at the top of a module. From one, its names lead to others: through
imports, re-exporting pages and modules' attributes. What a name leads to at run time alone (an entry of a registry) is
handed in as a further start. Classes count whole.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zpruner.artifacts.files import checksum, digest_of

HOW = (
    "stages._code",
    "stages._deciding",
    "stages._project",
    "stages._ran",
    "zpruner.artifacts.arrow",
    "zpruner.artifacts.files",
    "zpruner.artifacts.result_file",
    "zpruner.artifacts.sealed_lines",
    "zpruner.artifacts.store",
    "zpruner.artifacts.work",
    "zpruner.errors",
    "zpruner.parts",
    "zpruner.runtime",
    "zpruner.settings",
    "zpruner.sources._disk",
)
"""Rooms and modules that say how and not what: messages, bars, threads, where files lie and in which format."""
PASSED = (
    "zpruner.checkpoint.conversion",
    "zpruner.checkpoint.files",
    "zpruner.checkpoint.manifest",
    "zpruner.checkpoint.tensors",
    "zpruner.execution.choose",
    "zpruner.execution.lockstep",
    "zpruner.execution.read_ahead",
    "zpruner.execution.runner",
    "zpruner.execution.skeleton",
    "zpruner.execution.spill",
)
"""They say how, too (whole or block by block; tests hold one to the numbers of the other), but run what decides."""

_TYPES = ("returns", "type_comment", "type_params")
"""Fields of a function's tree that a type checker alone reads."""
_SILENT = (*_TYPES, "ctx", "kind")

_Definition = tuple[str, str]
"""The names of a module and of a definition in it; an empty name stands for the whole module."""


@dataclass(frozen=True)
class _Module:
    """A parsed module: the statements that define each name, what each import binds, and loose statements."""

    package: str
    definitions: Mapping[str, tuple[ast.stmt, ...]]
    imports: Mapping[str, _Definition]
    loose: tuple[ast.stmt, ...]


class Code:
    """The code below a set of packages.

    Args:
        packages: name of a top-level package -> its folder. Imports of others are not followed.
    """

    def __init__(self, packages: Mapping[str, Path]) -> None:
        self._packages = dict(packages)
        self._modules: dict[str, _Module | None] = {}
        self._uses: dict[_Definition, frozenset[_Definition]] = {}
        self._texts: dict[_Definition, str] = {}

    def digest(self, *starts: _Definition) -> str:
        """Return a digest of every definition that `starts` reach, themselves included, and of data beside them."""
        found = [(module, name) for module, name in self.reached(*starts) if not _below(module, PASSED)]
        texts = {f"{module}:{name}": self._text((module, name)) for module, name in found}
        return digest_of([texts, *(self._data(folder) for folder in sorted({self._folder(m) for m, _ in found}))])

    def reached(self, *starts: _Definition) -> frozenset[_Definition]:
        """Return the names of all definitions that `starts` (module, name) reach."""
        found: set[_Definition] = set()
        waiting = list(starts)
        while waiting:
            here = waiting.pop()
            if here not in found:
                found.add(here)
                waiting += self._used_by(here)
        return frozenset(found)

    def _used_by(self, definition: _Definition) -> frozenset[_Definition]:
        if definition not in self._uses:
            self._uses[definition] = frozenset(self._find_used(definition))
        return self._uses[definition]

    def _find_used(self, definition: _Definition) -> Iterator[_Definition]:
        module, name = definition
        parsed = self._parse(module)
        if parsed is None:
            return
        if not name:
            yield from ((module, each) for each in parsed.definitions)
        elif name not in parsed.definitions and name in parsed.imports:
            yield from self._follow(parsed.imports[name], ())
        for statement in (*parsed.definitions.get(name, ()), *parsed.loose):
            local = {**parsed.imports, **_imports(ast.walk(statement), parsed.package)}
            for path in _paths(statement):
                yield from self._resolve(module, parsed, local, path)

    def _resolve(
        self, module: str, parsed: _Module, imports: Mapping[str, _Definition], path: tuple[str, ...]
    ) -> Iterator[_Definition]:
        """Yield what a dotted path stands for in a module: a definition, or a whole module used as an object."""
        first = path[0]
        if first in imports:
            yield from self._follow(imports[first], path[1:])
        elif first in parsed.definitions:
            yield module, first

    def _follow(self, target: _Definition, attributes: tuple[str, ...]) -> Iterator[_Definition]:
        module, name = target
        if name and self._parse(f"{module}.{name}") is not None:  # a submodule
            module, name = f"{module}.{name}", ""
        if not self._ours(module):
            return
        if not name:
            if attributes:
                yield from self._follow((module, attributes[0]), attributes[1:])
            elif module not in self._packages:  # `import package` alone says nothing
                yield module, ""
            return
        parsed = self._parse(module)
        if parsed is None:
            return
        if name in parsed.definitions:
            yield module, name
        elif name in parsed.imports:
            yield from self._follow(parsed.imports[name], attributes)

    def _ours(self, module: str) -> bool:
        return module.split(".")[0] in self._packages and not _below(module, HOW)

    def _parse(self, module: str) -> _Module | None:
        if module not in self._modules:
            path = self._file(module)
            self._modules[module] = None if path is None else _parsed(path, module)
        return self._modules[module]

    def _file(self, module: str) -> Path | None:
        package, *rest = module.split(".")
        if package not in self._packages:
            return None
        path = self._packages[package].joinpath(*rest)
        candidates = (path.with_suffix(".py"), path / "__init__.py") if rest else (path / "__init__.py", path)
        return next((file for file in candidates if file.suffix == ".py" and file.is_file()), None)

    def _text(self, definition: _Definition) -> str:
        if definition not in self._texts:
            parsed = self._parse(definition[0])
            statements = () if parsed is None else (*parsed.definitions.get(definition[1], ()), *parsed.loose)
            self._texts[definition] = digest_of([_dump(statement) for statement in statements])
        return self._texts[definition]

    def _folder(self, module: str) -> Path:
        file = self._file(module)
        assert file is not None
        return file.parent

    def _data(self, folder: Path) -> dict[str, str]:
        """Return the checksum of every file in a folder that is no Python, such as templates."""
        files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix not in (".py", ".pyc"))
        return {path.name: checksum(path) for path in files}


def _below(module: str, rooms: Iterable[str]) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in rooms)


def _parsed(path: Path, module: str) -> _Module:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    definitions: dict[str, list[ast.stmt]] = {}
    loose = []
    statements = list(_top_level(ast.parse(path.read_bytes()).body))
    for statement in statements:
        names = _defined(statement)
        for name in names:
            definitions.setdefault(name, []).append(statement)
        if not names and not isinstance(statement, ast.Import | ast.ImportFrom):
            loose.append(statement)
    found = {name: tuple(each) for name, each in definitions.items()}
    return _Module(package, found, _imports(statements, package), tuple(loose))


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when a module is imported; docstrings and imports for type checkers left out."""
    for statement in body:
        match statement:
            case ast.Expr(value=ast.Constant()):
                continue
            case ast.If(test=test) if "TYPE_CHECKING" in ast.unparse(test) or "__main__" in ast.unparse(test):
                yield from _top_level(statement.orelse)
            case ast.If() | ast.Try() | ast.With():
                for part in ("body", "handlers", "orelse", "finalbody"):
                    for inner in getattr(statement, part, ()):
                        yield from _top_level(inner.body if isinstance(inner, ast.ExceptHandler) else [inner])
            case _:
                yield statement


def _defined(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.AugAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _imports(nodes: Iterable[ast.AST], package: str) -> dict[str, _Definition]:
    """Return what every import among `nodes` binds: name -> (module, name in it)."""
    found: dict[str, _Definition] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                found[alias.asname or first] = (alias.name if alias.asname else first, "")
    return found


def _paths(statement: ast.stmt) -> set[tuple[str, ...]]:
    """Return every dotted path of names that a statement reads; annotations of functions decide nothing."""
    found: set[tuple[str, ...]] = set()
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        if path := _path(node):
            found.add(path)
            continue
        waiting += [
            child
            for name, value in ast.iter_fields(node)
            if name not in _TYPES
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST) and not (isinstance(node, ast.arg) and name == "annotation")
        ]
    return found


def _path(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (before := _path(node.value)):
        return (*before, node.attr)
    return ()


def _dump(node: ast.AST) -> str:
    """Return a tree as text that no comment, docstring, annotation of a function or version of Python changes."""
    parts = []
    for name, value in ast.iter_fields(node):
        if name in _SILENT or (isinstance(node, ast.arg) and name == "annotation"):
            continue
        items = [i for i in (value if isinstance(value, list) else [value]) if i is not None and not _is_text(i)]
        if items:
            parts.append(f"{name}={[_dump(i) if isinstance(i, ast.AST) else repr(i) for i in items]}")
    return f"{type(node).__name__}({','.join(parts)})"


def _is_text(node: object) -> bool:
    """Return whether a statement is a string that nothing reads: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
