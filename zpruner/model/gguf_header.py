"""The header of a GGUF file, walked through before other libraries read it: they believe every length in it."""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from zpruner.errors import one_line
from zpruner.model.config import one_sentence, too_large

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ENTRIES = 1 << 21
"""Of a list, at most: every entry becomes an object, and the largest vocabularies have 2**18 tokens."""
_DIMENSIONS = 8
_ORIGIN = "general."
_KEPT = 100
"""Of what is said of the origin, at most: entries of a list, and letters of a text."""


@dataclass(frozen=True)
class GgufHeader:
    """What a header says.

    Attributes:
        origin: of the model: the texts, and lists of texts, under `general.`.
        weights: numbers in all its tensors.
    """

    origin: dict[str, str | list[str]]
    weights: int


def check_header(file: Path) -> GgufHeader:
    """Return what a header says.

    Args:
        file: a GGUF file, version 2 or 3, little-endian.

    Raises:
        SourceError: lengths that lead beyond the file, lists beyond any vocabulary, more weights than the file holds.
    """
    origin: dict[str, str | list[str]] = {}
    with (
        one_sentence(file, "a whole GGUF file"),
        file.open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        header = _Header(data)
        if header.take(4) != b"GGUF":
            raise ValueError("no GGUF file")
        version = header.number("I")
        if version not in (2, 3):
            raise ValueError(f"GGUF version {version}, where 2 and 3 are read")
        tensors, settings = header.number("Q"), header.number("Q")
        for _ in range(settings):
            name = header.text()
            value = header.value(header.number("I"), keep=name.startswith(_ORIGIN))
            if name.startswith(_ORIGIN) and isinstance(value, str | list):
                origin[name] = value
            elif (problem := too_large(value, name)) is not None:
                raise ValueError(f"{problem[0]}, expected {problem[1]}")
        weights = 0
        for _ in range(tensors):
            weights += header.tensor()
            if weights > 8 * len(data):  # no type takes less than a bit per weight
                raise ValueError(f"more than {weights} weights")
    return GgufHeader(origin, weights)


class _Header:
    """Reads a header from front to back; ValueError where it leads beyond the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def take(self, length: int) -> bytes:
        """Return the next bytes."""
        if length > len(self._data) - self._at:
            raise ValueError(f"a length of {length} at byte {self._at} of {len(self._data)}")
        start, self._at = self._at, self._at + length
        return self._data[start : self._at]

    def number(self, kind: str) -> int:
        """Return a number of a type of `struct`."""
        found: int = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]
        return found

    def text(self) -> str:
        """Return a string."""
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, keep: bool = False) -> object:
        """Return a number; a string or a list of strings only where it is to be kept, else None."""
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            text = self.take(self.number("Q"))
            return _shortened(text) if keep else None
        if kind == _ARRAY:
            return self._list(keep)
        raise ValueError(f"a value of type {kind}")

    def _list(self, keep: bool) -> list[str] | None:
        kind, entries = self.number("I"), self.number("Q")
        if entries > _ENTRIES:
            raise ValueError(f"a list of {entries} entries")
        if kind in _NUMBERS:
            self.take(entries * struct.calcsize(_NUMBERS[kind]))
            return None
        if kind != _STRING:
            raise ValueError(f"a list of type {kind}")
        kept = []
        for number in range(entries):
            text = self.take(self.number("Q"))
            if keep and number < _KEPT:
                kept.append(_shortened(text))
        return kept

    def tensor(self) -> int:
        """Skip a tensor's name, shape, type and place; return how many weights it has."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > _DIMENSIONS:
            raise ValueError(f"'{name[:60]}' with {dimensions} dimensions")
        shape = [self.number("Q") for _ in range(dimensions)]
        self.number("I")
        if math.prod(shape) > 8 * len(self._data) or self.number("Q") > len(self._data):
            raise ValueError(f"'{name[:60]}', larger than the file")
        return math.prod(shape)


def _shortened(text: bytes) -> str:
    return one_line(text.decode("utf-8", "replace"), _KEPT)
