"""YAML that anybody may have written: plain values, read in bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from zpruner.errors import InvalidSettingError, shown

_LONGEST = 1 << 18
"""Characters: 30 times the shipped params.yaml; the reader takes some 3 s for as many."""
_DEEPEST = 48
_VALUES = 1 << 16
"""Values, those that an alias repeats included: each may be checked, hashed and written again."""


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds; see `parse_yaml`.

    Raises:
        OSError: a file that cannot be read.
        InvalidSettingError: as `parse_yaml`; bytes that are not UTF-8.
    """
    try:
        if path.stat().st_size > 4 * _LONGEST:  # bytes of so many characters
            raise _too_long(str(path), f"{path.stat().st_size:,} bytes")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidSettingError(
            str(path), f"bytes that are not UTF-8 (at {error.start:,})", "YAML in UTF-8", "Save it as UTF-8."
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return YAML 1.2 as None, bool, int, float, str, and lists and dictionaries of these whose keys are text.

    Args:
        text: one document.
        where: what to call it in an error.

    Raises:
        InvalidSettingError: not YAML; a tag, a date, an integer of more than 64 bits, or a key that is no text; text
            that is longer, nested deeper, or that aliases make larger, than settings can be.
    """
    if len(text) > _LONGEST:
        raise _too_long(where, f"{len(text):,} characters")
    try:
        _check_nodes(text, where)
        reader = YAML(typ="safe", pure=True)
        reader.composer.warn_double_anchors = False  # a name given twice stands for the value before the alias
        found = reader.load(text)
    except MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        reason = str(error.problem or error.context)
        raise InvalidSettingError(
            where, f"text that is not YAML{line} ({reason})", "YAML", "Look at brackets, quotes and indentation there."
        ) from None
    except (YAMLError, ValueError) as error:  # the latter: dates and numbers that cannot be
        reason = shown(str(error).partition("\n")[0])
        raise InvalidSettingError(
            where, f"text that is not YAML ({reason})", "YAML", "Look at brackets, quotes and indentation there."
        ) from None
    return _plain(found, where, "")


def _check_nodes(text: str, where: str) -> None:
    """Refuse tags, depth, and aliases that repeat too much, from the parser's events: before anything is built."""
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the values before it
    sizes: dict[str, int] = {}
    values = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        line = f"{where}, line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise InvalidSettingError(
                    line, f"*{event.anchor}", "the name of a value that is complete", "Write the value."
                )
            values += sizes[event.anchor]
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = values - before
        elif isinstance(event, ScalarEvent | CollectionStartEvent):
            if event.tag is not None:
                raise InvalidSettingError(line, f"the tag {shown(str(event.tag))}", "a value without", "Remove it.")
            values += 1
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, values - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > _DEEPEST:
            raise InvalidSettingError(
                line, "values nested deeper", f"at most {_DEEPEST} levels", "Write them less deep."
            )
        if values > _VALUES:
            raise InvalidSettingError(
                line, "more values", f"at most {_VALUES:,}, aliases written out", "Write fewer values."
            )


def _plain(value: object, where: str, path: str) -> Any:
    """Return a value made of JSON's types alone, nothing shared within it."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise _refused(where, path, f"the key {shown(key)}", "text as keys", "Put it in quotes.")
            _check_text(key, where, path)
        return {key: _plain(item, where, f"{path}.{key}" if path else key) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise _refused(where, path, shown(value), "a number of 64 bits", "Write a smaller one.")
    if isinstance(value, str):
        _check_text(value, where, path)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise _refused(where, path, shown(str(value)), "text, a number, true or false", "Put a date in quotes.")


def _check_text(text: str, where: str, path: str) -> None:
    """Refuse text that no file name and no UTF-8 can hold."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise _refused(where, path, shown(text), "text without NUL and lone surrogates", "Remove them.")


def _refused(where: str, path: str, got: str, expected: str, action: str) -> InvalidSettingError:
    return InvalidSettingError(f"{where}: {path}" if path else where, got, expected, action)


def _too_long(where: str, got: str) -> InvalidSettingError:
    return InvalidSettingError(where, got, f"at most {_LONGEST:,} characters", "Settings are a page or two.")
