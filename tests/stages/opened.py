"""Which files a stage opens, as the kernel sees it: libraries in Rust and C++ open some without Python's knowledge."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OPEN = 0x20
_EVENT = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(folder: Path) -> Iterator[set[Path]]:
    """Yield a set that holds, after the block, every file below `folder` that was opened and was not written anew.

    What links lead to is not the project's.
    """
    there = {path: path.stat().st_ino for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    folders = {path.parent for path in there}
    fd = _LIBC.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        watched = {_LIBC.inotify_add_watch(fd, os.fsencode(path), _OPEN): path for path in folders}
        found: set[Path] = set()
        yield found
        while True:
            try:
                data = os.read(fd, 1 << 20)
            except BlockingIOError:
                break
            while data:
                watch, _, _, length = _EVENT.unpack_from(data)
                name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                found.add(watched[watch] / os.fsdecode(name))
                data = data[_EVENT.size + length :]
        found &= {path for path, inode in there.items() if path.is_file() and path.stat().st_ino == inode}
    finally:
        os.close(fd)
