"""Whether a local file or folder is what it was: size and time first, the hash where they differ."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from zpruner.errors import SourceError
from zpruner.runtime.plain_json import read_json
from zpruner.sources._disk import replacing
from zpruner.sources._hash import file_sha256, folder_files, folder_sha256

_SETTLED = 2_000_000_000
"""Nanoseconds after which a file that changes again has another time: clocks of file systems are coarse."""

State = tuple[str, int, int, int, int]
"""Of a file: its path below the folder, size, times of change of content and of anything, and inode."""


def file_states(path: Path) -> list[State]:
    """Return the state of a file, or of every file of a folder that `folder_sha256` covers."""
    names = folder_files(path) if path.is_dir() else [""]
    found = ((name, (path / name).stat()) for name in names)
    return [(name, one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for name, one in found]


def content_sha256(path: Path, memory: Path) -> str:
    """Return the SHA-256 of a local file or folder (`folder_sha256`), hashed anew only where its state changed.

    Args:
        path: the file or folder.
        memory: a folder where states and hashes are kept.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        states = file_states(path)
        kept = memory / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"
        known = _read(kept)
        if known.get("states") == [list(state) for state in states] and isinstance(sha256 := known.get("sha256"), str):
            return sha256
        settled = time.time_ns() - _SETTLED
        sha256 = folder_sha256(path) if path.is_dir() else file_sha256(path)
        if all(max(state[2], state[3]) < settled for state in states):
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps({"states": states, "sha256": sha256}), encoding="utf-8")
    except OSError as error:
        got = f"content that cannot be read ({error.strerror or error})"
        raise SourceError(
            str(path), got, "a file or folder that this user may read", f"Make it readable: chmod u+r {path}."
        ) from None
    return sha256


def _read(kept: Path) -> dict[str, object]:
    try:
        known = read_json(kept)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
