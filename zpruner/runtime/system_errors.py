"""What the system refuses to write or read, in one sentence with the advice that fits."""

from __future__ import annotations

import errno
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zpruner.errors import AccessError, DiskFullError, ZprunerError

_AGAIN = "run again: finished parts are kept."
_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHERS = {
    errno.EFBIG: ("a file that grew to the limit", "no limit on a file's size", "Raise it (`ulimit -f unlimited`)"),
    errno.EACCES: ("no permission", "one that this user may use", "Give it to this user (`chown`, `chmod u+rwX`)"),
    errno.EPERM: ("no permission", "one that this user may use", "Give it to this user (`chown`, `chattr -i`)"),
    errno.EROFS: ("a read-only file system", "one that can be written", "Mount it writable, or move the project"),
    errno.EISDIR: ("a folder", "a file", "Delete the folder"),
    errno.ENOTDIR: ("a file", "a folder", "Delete the file"),
    errno.EEXIST: ("a file", "a folder", "Delete the file"),
    errno.ENOTEMPTY: ("a folder in which others write", "one of its own", "Stop the other process"),
    errno.EIO: ("an error of the disk", "a disk that works", "Check the disk"),
    errno.EMFILE: ("too many open files", "more of them allowed", "Raise the limit (`ulimit -n`)"),
    errno.ENAMETOOLONG: (
        "a name too long for the file system",
        "a shorter one",
        "Shorten the label or the path",
    ),
}
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


@contextmanager
def system_errors_named(path: Path, passing: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turn what the system refuses within the block into one sentence about `path`; other errors pass.

    Args:
        path: what is written or read.
        passing: errors of the system that the caller words.

    Raises:
        DiskFullError: no space left, or a limit on the size of files.
        AccessError: no permission, a read-only place, a folder where a file belongs, a broken disk.
    """
    told: tuple[type[Exception], ...] = (ZprunerError, *passing)
    try:
        yield
    except told:
        raise
    except Exception as error:
        if (found := explain_system_error(error, path)) is None:
            raise
        raise found from None


def explain_system_error(error: Exception, path: Path) -> ZprunerError | None:
    """Return what an error of the system means for `path`, or None if it is no such error."""
    code = _code(error)
    if code in _FULL:
        free = shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free
        got = f"no space left on the device ({free / 1e9:.2f} GB free)"
        action = f"Free some space (`dvc gc --workspace` drops unused cache) and {_AGAIN}"
        return DiskFullError(str(path), got, "room for the file", action)
    if code not in _OTHERS:
        return None
    got, expected, action = _OTHERS[code]
    named = str(error.filename or path) if isinstance(error, OSError) else str(path)
    where = str(path) if ".tmp-" in named else named
    kind = DiskFullError if code == errno.EFBIG else AccessError
    if code == errno.EFBIG:
        got += f" of {resource.getrlimit(resource.RLIMIT_FSIZE)[0]} bytes"
    return kind(where, got, expected, f"{action} and {_AGAIN}")


def _code(error: Exception) -> int | None:
    """Return the system's number of an error; libraries in Rust and numpy give it in words, or not at all."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := _IN_WORDS.search(str(error)):
        return int(found[1])
    if "No space left" in str(error):
        return errno.ENOSPC
    return None
