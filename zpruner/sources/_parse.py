"""A source is one string: a file in a Python package, something on the Hugging Face hub, or a local path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from zpruner.sources._form import NAME, Remote, on_disk, refuse
from zpruner.sources._hub import HubRef
from zpruner.sources._package import PackageFile

REMOTE: tuple[type[Remote], ...] = (PackageFile, HubRef)
"""Every form but local paths and bare names on the hub."""
FORMS = f"{', '.join(found.form for found in REMOTE)}, ORG/NAME on the hub, or a local path"

_HUB_ADDRESS = re.compile(rf"https?://(?:www\.)?huggingface\.co/(?:datasets/)?({NAME}/{NAME})/?(?:[?#].*)?", re.I)


@dataclass(frozen=True)
class LocalPath:
    """A file or folder on this machine; `~` is the home folder."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


Source = Remote | LocalPath


def parse_source(text: str) -> Source:
    """Read a source string. Nothing is looked up: ORG/NAME is a local path here (see `resolve_source`).

    Raises:
        InvalidSettingError: none of the forms; a `hf:` source without a revision; a path that leaves its package or
            repository, or that no file system takes.
    """
    if not text.strip() or text != text.strip():
        refuse(text, FORMS)
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        refuse(text, "text: bytes that are no UTF-8 cannot be written to params.yaml or a model card", "Rename it.")
    if not text.isprintable():
        refuse(text, "one printable line", "Rename it.")
    for form in REMOTE:
        if text[: len(form.prefix)].lower() == form.prefix:
            return form.parse(text, text[len(form.prefix) :])
    if match := _HUB_ADDRESS.fullmatch(text):
        refuse(text, FORMS, f"Write {match[1]}.")
    if re.match(r"[A-Za-z][A-Za-z0-9+]+:", text):
        refuse(text, FORMS)
    return LocalPath(on_disk(text, _home(text), "path"))


def _home(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        refuse(text, f"a home folder that {user} stands for", f"Write ./{user} for a folder of that name.")
