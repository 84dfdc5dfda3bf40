"""SHA-256 of files and folders, and the check against the one in params.yaml."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from zpruner.errors import HashMismatchError, InvalidSettingError, SourceError


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return one SHA-256 for a folder.

    It is the SHA-256 of the lines `HASH  NAME` (as `sha256sum` prints them) of all files below the folder, sorted
    by NAME, the path relative to the folder with `/`; files and folders whose name begins with a dot are left out.
    """
    lines = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in folder_files(folder))
    return hashlib.sha256(lines.encode()).hexdigest()


def folder_files(folder: Path) -> list[str]:
    """Return the names, as `folder_sha256` has them, of the files that it covers."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def texts_sha256(texts: Iterable[str]) -> str:
    """Return one SHA-256 for a sequence of texts: that of each UTF-8 length (8 bytes, little-endian) and text."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def checked_sha256(where: str, sha256: str | None) -> str | None:
    """Return `sha256` in lower case.

    Raises:
        InvalidSettingError: not 64 hexadecimal digits.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InvalidSettingError(
            f"sha256 of {where}", repr(sha256), "64 hexadecimal digits", "Correct the sha256 beside the source."
        )
    return None if sha256 is None else sha256.lower()


def require_sha256(where: str, got: str, expected: str | None) -> None:
    """Raise HashMismatchError with both values unless `expected` is None or equals `got`."""
    if expected is not None and got != expected:
        raise HashMismatchError(
            where,
            f"content with SHA-256 {got}",
            expected,
            "The content is not the one params.yaml describes: correct the sha256 there if the change is meant, "
            "else do not use it.",
        )


def require_content(source: str, path: Path, expected: str | None) -> None:
    """Raise HashMismatchError unless `expected` is None or the SHA-256 of a local file or folder (`folder_sha256`).

    Raises:
        SourceError: it cannot be read.
    """
    if expected is None:
        return
    try:
        got = folder_sha256(path) if path.is_dir() else file_sha256(path)
    except OSError as error:
        got = f"content that cannot be read ({error.strerror or error})"
        raise SourceError(
            source, got, "a file or folder that this user may read", f"Make it readable: chmod u+r {path}."
        ) from None
    require_sha256(source, got, expected)
