"""A source is one string: a file in a Python package, something on the Hugging Face hub, or a local path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from zpruner.errors import InvalidSettingError
from zpruner.sources._quote import quoted

FORMS = "pip:NAME==VERSION/PATH/INSIDE/WHEEL, hf:ORG/NAME@REVISION[/FILE], ORG/NAME on the hub, or a local path"

NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_PACKAGE = re.compile(rf"({NAME})==([A-Za-z0-9][A-Za-z0-9.!+_]*)/(.+)")
_HUB = re.compile(rf"({NAME}/{NAME})@([A-Za-z0-9][A-Za-z0-9._-]*)(?:/(.+))?")
_HUB_ADDRESS = re.compile(rf"https?://(?:www\.)?huggingface\.co/(?:datasets/)?({NAME}/{NAME})/?(?:[?#].*)?", re.I)
_LONGEST = {"path": (4095, 255), "inner": (1000, 200)}
"""Bytes of a whole path, and from one / to the next; of a path below the downloads, where more is put around it."""


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
    """Read a source string. Nothing is looked up: ORG/NAME is a local path here (see `resolve_source`).

    Raises:
        InvalidSettingError: none of the forms; a `hf:` source without a revision; a path that leaves its package or
            repository, or that no file system takes.
    """
    if not text.strip() or text != text.strip():
        _refuse(text, FORMS)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        _refuse(text, "text: bytes that are no UTF-8 cannot be written to params.yaml or a model card", "Rename it.")
    if not text.isprintable():
        _refuse(text, "one printable line", "Rename it.")
    if match := re.match(r"(?:pip|hf):", text, re.IGNORECASE):
        form, rest = match[0].lower(), text[match.end() :]
        return _package(text, rest) if form == "pip:" else _hub(text, rest)
    if match := _HUB_ADDRESS.fullmatch(text):
        _refuse(text, FORMS, f"Write {match[1]}.")
    if re.match(r"[A-Za-z][A-Za-z0-9+]+:", text):
        _refuse(text, FORMS)
    return LocalPath(_on_disk(text, _home(text), "path"))


def _package(text: str, rest: str) -> PackageFile:
    match = _PACKAGE.fullmatch(rest)
    if match is None:
        _refuse(text, "pip:NAME==VERSION/PATH/INSIDE/WHEEL with one exact version")
    _on_disk(text, Path(f"{match[1]}-{match[2]}"), "inner")
    return PackageFile(match[1], match[2], _inner_path(text, match[3]))


def _hub(text: str, rest: str) -> HubRef:
    match = _HUB.fullmatch(rest)
    if match is None:
        _refuse(text, "hf:ORG/NAME@REVISION[/FILE] (without a revision, the content could change between two runs)")
    _on_disk(text, Path(f"{match[1].replace('/', '--')}@{match[2]}"), "inner")
    return HubRef(match[1], match[2], _inner_path(text, match[3]) if match[3] else None)


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        _refuse(text, f"a home folder that {user} stands for", f"Write ./{user} for a folder of that name.")


def _inner_path(text: str, path: str) -> str:
    """Return `path` unless it could point outside the folder it is extracted into."""
    parts = path.split("/")
    if "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        _refuse(text, "a relative path inside the package or repository, with / and without empty parts, . and ..")
    _on_disk(text, Path(path), "inner")
    return path


def _on_disk(text: str, path: Path, kind: Literal["path", "inner"]) -> Path:
    """Return `path` unless it is longer than file systems take."""
    whole, part = _LONGEST[kind]
    sizes = [len(name.encode()) for name in path.parts]
    if sum(sizes) + len(sizes) > whole or max(sizes, default=0) > part:
        _refuse(text, f"a path of at most {whole} bytes, {part} from one / to the next")
    return path


def _refuse(text: str, expected: str, action: str = "Correct the source.") -> NoReturn:
    raise InvalidSettingError("source", quoted(text), expected, action)
