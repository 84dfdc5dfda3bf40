"""JSON files read with every key checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zpruner.errors import ArtifactError


class Record:
    """A JSON object from a file; every getter names file and key when something is wrong.

    Args:
        path: the file.
        values: the object.
        command: what a user runs to write the file anew.
        inside: where in the file the object stands, e.g. `layers[3].`.
    """

    def __init__(self, path: Path, values: Mapping[str, Any], command: str, inside: str = "") -> None:
        self.path, self.values, self.command, self.inside = path, values, command, inside

    @classmethod
    def read(cls, path: Path, command: str) -> Record:
        """Read a file that holds one JSON object.

        Raises:
            ArtifactError: missing, or no JSON object.
        """
        action = f"Run `{command}`."
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(str(path), "no file", "the results of a variant to report", action) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ArtifactError(str(path), f"text that is not JSON ({error})", "a JSON object", action) from None
        if not isinstance(values, dict):
            raise ArtifactError(str(path), f"a JSON {type(values).__name__}", "a JSON object", action)
        return cls(path, values, command)

    def wrong(self, key: str, expected: str) -> ArtifactError:
        """Return the error that says what stands under `key` instead of `expected`."""
        got = repr(self.values[key])[:60] if key in self.values else "no such key"
        return ArtifactError(str(self.path), f"{got} under '{self.inside}{key}'", expected, f"Run `{self.command}`.")

    def has(self, key: str) -> bool:
        """Return whether something stands under `key`; null counts as nothing."""
        return self.values.get(key) is not None

    def record(self, key: str) -> Record:
        """Return an object."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Record(self.path, value, self.command, f"{self.inside}{key}.")

    def number(self, key: str) -> float:
        """Return a number, NaN and infinity included."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(key, "a number")
        return float(value)

    def share(self, key: str) -> float:
        """Return a number in [0, 1]."""
        value = self.number(key)
        if not 0.0 <= value <= 1.0:
            raise self.wrong(key, "a share in [0, 1]")
        return value

    def count(self, key: str) -> int:
        """Return a whole number that is not negative."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self.wrong(key, "a whole number, 0 or more")
        return value

    def text(self, key: str) -> str:
        """Return a string."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of numbers."""
        value = self.values.get(key)
        if not isinstance(value, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
            raise self.wrong(key, "a list of numbers")
        return tuple(float(v) for v in value)

    def records(self, key: str) -> tuple[Record, ...]:
        """Return a list of objects."""
        value = self.values.get(key)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            raise self.wrong(key, "a list of objects")
        return tuple(Record(self.path, v, self.command, f"{self.inside}{key}[{i}].") for i, v in enumerate(value))

    def scalars(self, key: str) -> dict[str, str | int | float | bool | None]:
        """Return an object whose values are strings, numbers, booleans or null."""
        value = self.values.get(key)
        if not isinstance(value, dict) or not all(
            v is None or isinstance(v, str | int | float | bool) for v in value.values()
        ):
            raise self.wrong(key, "an object of plain values")
        return dict(value)
