"""A file of results: plain JSON with a checksum of its content, checked field by field against its class.

Readers get frozen values or one sentence that names file, field and what was found there. `Shown` says how a field
appears in tables.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from zpruner.artifacts.files import read_sealed_json, write_sealed_json
from zpruner.errors import ArtifactError, mend

Form = Literal["number", "perplexity", "share", "error", "bytes", "parameters", "flops"]
_UNITS: dict[Form, float] = {"bytes": 1e6, "parameters": 1e6, "flops": 1e9}


@dataclass(frozen=True)
class Shown:
    """How a metric is shown.

    Attributes:
        title: over its column.
        form: how its values are written; `bytes` in MB, `parameters` in millions, `flops` in thousand millions.
        detail: added to the title where a metric stands alone; names in braces are fields of the same result.
        dense: what the unpruned model has, where it is not measured there; None: it is measured.
        in_table: whether it is a column of the report's table.
        in_summary: whether it is one of the few numbers of `dvc metrics`.
        where_it_differs: whether it is a column of the table only where some model's differs from the others'.
    """

    title: str
    form: Form = "number"
    detail: str = ""
    dense: float | None = None
    in_table: bool = True
    in_summary: bool = True
    where_it_differs: bool = False

    @property
    def is_size(self) -> bool:
        """Whether it says how large a model is: counted in millions."""
        return self.form in _UNITS

    def number(self, value: float) -> float:
        """Return a value as it stands under the title: bytes in MB."""
        return value / _UNITS[self.form] if self.is_size else value


class Record(BaseModel):
    """Base of everything in a results file: frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Result(Record):
    """One file of results.

    Attributes:
        anchor: the folder of all files of a class, below which each says its own place; "": it may lie anywhere.
    """

    anchor: ClassVar[str] = ""

    @classmethod
    def read(cls, path: Path, command: str) -> Self:
        """Return what `write` wrote.

        Args:
            path: the file.
            command: what writes it anew.

        Raises:
            ArtifactError: missing, truncated, altered, or of another schema; names the file and what is wrong in it.
        """
        values = read_sealed_json(path, "results of this project", command)
        if cls.anchor and (place := values.pop("place", None)) != cls.place_of(path):
            got = "results that do not say whose they are" if place is None else f"results of {place}"
            raise ArtifactError(str(path), got, f"those of {cls.place_of(path)}", mend(command))
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            raise _complaint(path, values, error, f"Run `{command}`.") from None

    def write(self, path: Path) -> None:
        """Write the file whole or not at all; what is None is left out.

        Raises:
            DiskFullError: no space left.
        """
        values = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        write_sealed_json(path, values | ({"place": self.place_of(path)} if self.anchor else {}))

    @classmethod
    def place_of(cls, path: Path) -> str:
        """Return where a file lies below the anchor, by which another variant's in its place is told."""
        folders = path.parts[:-1]
        below = folders[len(folders) - folders[::-1].index(cls.anchor) :] if cls.anchor in folders else ()
        return "/".join((*below, path.name))


def _complaint(path: Path, values: dict[str, Any], error: ValidationError, action: str) -> ArtifactError:
    first = error.errors(include_url=False)[0]
    missing = first["type"] == "missing"
    got = "no such key" if missing else repr(first["input"])[:60]
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = {"missing": "a value", "extra_forbidden": "a key of this version"}.get(first["type"], expected)
    return ArtifactError(str(path), f"{got} under '{_place(values, first['loc'], missing)}'", expected, action)


def _place(values: Any, location: tuple[int | str, ...], missing: bool) -> str:
    """Return where in a file a complaint of pydantic points, e.g. `layers[3].sparsity`, without the names of types."""
    place = ""
    for depth, part in enumerate(location):
        match values, part:
            case list(), int():
                place += f"[{part}]"
                values = values[part]
            case dict(), str() if part in values:
                place += f".{part}"
                values = values[part]
            case _:
                place += f".{part}" if missing and depth == len(location) - 1 else ""
                break
    return place.removeprefix(".")


def shown_fields(part: type[BaseModel], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Shown]:
    """Return path -> how it is shown, of every annotated field of a class of results and of its parts, in order."""
    found: dict[tuple[str, ...], Shown] = {}
    for name, field in part.model_fields.items():
        here = (*path, name)
        found.update((here, entry) for entry in field.metadata if isinstance(entry, Shown))
        for inner in _records_of(field.annotation):
            found |= shown_fields(inner, here)
    return found


def _records_of(annotation: object) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    elif not isinstance(annotation, type):
        for argument in getattr(annotation, "__args__", ()):
            yield from _records_of(argument)


def value_at(result: BaseModel, path: tuple[str, ...]) -> float | None:
    """Return the number at a path of `shown_fields`, None where it (or the part that holds it) was not measured."""
    value: Any = result
    for name in path:
        value = None if value is None else getattr(value, name)
    return value


def in_words(shown: Shown, result: BaseModel) -> str:
    """Return the title of a metric that stands alone, with its detail in parentheses."""
    return f"{shown.title} ({shown.detail.format_map(dict(result))})" if shown.detail else shown.title
