"""What every form of source that lies elsewhere has in common, and what strings none may have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal, NoReturn, Self

from zpruner.errors import InvalidSettingError
from zpruner.sources._quote import quoted

Kind = Literal["model", "dataset"]
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_LONGEST = {"path": (4095, 255), "inner": (1000, 200)}
"""Bytes of a whole path, and from one / to the next; of a path below the downloads, where more is put around it."""


class Remote(ABC):
    """A source that is fetched, once, to this machine. A new form is a subclass, listed in REMOTE of `_parse.py`."""

    prefix: ClassVar[str]
    """What its strings begin with, in small letters, the colon included."""
    form: ClassVar[str]
    """How its strings are written, for messages."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str, rest: str) -> Self:
        """Return the source of a string: `rest` is what stands behind the prefix, `text` the whole, for `refuse`."""

    @property
    @abstractmethod
    def is_pinned(self) -> bool:
        """Whether its string alone always names the same content; else a SHA-256 must."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where it comes from, in words for `zpruner validate`."""

    @abstractmethod
    def fetch(self, sha256: str | None, downloads: Path, kind: Kind) -> Path:
        """Return the path of the file below `downloads`, fetched and checked.

        Raises:
            InvalidSettingError: neither pinned nor a hash.
            SourceError: it cannot be obtained.
            HashMismatchError: it has another hash.
        """


def on_disk(text: str, path: Path, kind: Literal["path", "inner"]) -> Path:
    """Return `path` unless it is longer than file systems take."""
    whole, part = _LONGEST[kind]
    sizes = [len(name.encode()) for name in path.parts]
    if sum(sizes) + len(sizes) > whole or max(sizes, default=0) > part:
        refuse(text, f"a path of at most {whole} bytes, {part} from one / to the next")
    return path


def inner_path(text: str, path: str) -> str:
    """Return `path` unless it could point outside the folder it is extracted into."""
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        refuse(text, "a relative path inside the package or repository, with / and without empty parts, . and ..")
    on_disk(text, Path(path), "inner")
    return path


def refuse(text: str, expected: str, action: str = "Write it in that form.") -> NoReturn:
    """Raise InvalidSettingError for a string that is no source."""
    raise InvalidSettingError("source", quoted(text), expected, action)
