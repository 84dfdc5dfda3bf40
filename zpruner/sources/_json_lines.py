"""JSON lines, checked line by line: every error names the line and what it has instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import ShapeMismatchError, SourceError

_SHOWN = 20
_INT32 = 1 << 31


def read_json_lines(lines: Iterator[str], column: str, tokens: str, source: str) -> tuple[str, ...] | NDArray[np.int32]:
    """Return the texts under the key `column`, or int32 (rows, length) token ids where the first object has `tokens`.

    Args:
        lines: of the file, without their ends; blank ones count, and are left out.
        column: the key of texts.
        tokens: the key of token ids.
        source: names the file in errors.

    Raises:
        SourceError: a line that is no JSON object, lacks the key, or has another value there.
        ShapeMismatchError: rows of token ids of unequal length.
    """
    rows = ((f"{source}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
    objects = ((where, _object(where, line)) for where, line in rows)
    first = next(objects, None)
    if first is None:
        return ()
    found = (first, *objects)
    if tokens in first[1]:
        return _stack([(where, _ids(where, entry, tokens)) for where, entry in found], tokens)
    return tuple(_text(where, entry, column) for where, entry in found)


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        got = f"text that is no JSON ({error.msg.removesuffix(' starting at')} at character {error.colno})"
        hint = "Write a list that takes several lines as one object per line." if line.strip() in ("[", "{") else ""
        raise SourceError(where, got, "one JSON object per line", hint or "Correct the line, or drop it.") from None
    except (ValueError, RecursionError):
        got = "JSON with a number, or a depth, that cannot be read"
        raise SourceError(where, got, "one JSON object per line", "Correct the line, or drop it.") from None
    if not isinstance(entry, dict):
        raise SourceError(where, _kind(entry), "one JSON object per line", "Correct the line, or drop it.")
    return entry


def _value(where: str, entry: dict[str, Any], key: str) -> Any:
    if key in entry:
        return entry[key]
    names = [name if len(name) <= 50 else f"{name[:50]}..." for name in list(entry)[:_SHOWN]]
    more = f" and {len(entry) - _SHOWN} more" if len(entry) > _SHOWN else ""
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names)
    raise SourceError(
        where, f"no column {key}", f"one of {shown}{more}" if entry else "a key", "Set column, or correct the line."
    )


def _text(where: str, entry: dict[str, Any], key: str) -> str:
    value = _value(where, entry, key)
    if not isinstance(value, str):
        raise SourceError(where, f"{_kind(value)} as {key}", "a string", "Correct the line, or set column.")
    try:
        value.encode()
    except UnicodeEncodeError:
        got = f"half of a surrogate pair in {key}"
        raise SourceError(where, got, "Unicode text", "Correct the line, or drop it.") from None
    return value


def _ids(where: str, entry: dict[str, Any], key: str) -> list[int]:
    value = _value(where, entry, key)
    if not (isinstance(value, list) and value and all(type(x) is int and -_INT32 <= x < _INT32 for x in value)):
        got = _kind(value) if not isinstance(value, list) else "a list of something else"
        raise SourceError(where, f"{got} as {key}", "a list of integers", "Correct the line.")
    return value


def _stack(rows: list[tuple[str, list[int]]], key: str) -> NDArray[np.int32]:
    length = len(rows[0][1])
    for where, ids in rows:
        if len(ids) != length:
            raise ShapeMismatchError(
                f"{where}, {key}",
                f"{len(ids)} token ids, and {length} in the first row",
                "rows of equal length",
                "Cut or drop the odd rows.",
            )
    return np.asarray([ids for _, ids in rows], dtype=np.int32)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value if abs(value) < 1e15 else '...'}"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"
