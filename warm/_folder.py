"""A worker's folder, with its socket and its `python`: private, and swept by the next worker if its owner is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "zpruner-warm-"
_LONGEST = 70
"""Characters of the folder around it: the address of a socket may have 104 (108 on Linux)."""


class Folder:
    """A folder that exists until `close`, or until the first sweep after this process has died."""

    def __init__(self) -> None:
        sweep()
        self.path, self._held = _make()

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._held)


def sweep() -> None:
    """Remove the folders of this user's workers whose owners have died: nobody holds their locks."""
    for path in _place().glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, held, or gone meanwhile
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(held).st_uid == os.getuid():
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(held)


def _make() -> tuple[Path, int]:
    """Return a new folder and the descriptor that locks it; a sweep may come between the two."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_place()))
        with suppress(FileNotFoundError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if path.is_dir():
                return path, held
            os.close(held)


def _place() -> Path:
    place = Path(tempfile.gettempdir())
    return place if len(os.fsencode(place)) <= _LONGEST else Path("/tmp")
