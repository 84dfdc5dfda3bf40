"""Writing that leaves nothing half-written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zpruner.errors import DiskFullError


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; rename it to `target` on success, remove it on an error.

    Raises:
        DiskFullError: no space left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with disk_full(target):
        try:
            yield temporary
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_full(target: Path) -> Iterator[None]:
    """Turn "no space left on device" into DiskFullError."""
    try:
        yield
    except Exception as error:
        # safetensors reports the operating system's error in words only.
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise DiskFullError(
                str(target), "no space left on the device", "room for the file", "Free some space and run again."
            ) from None
        raise
