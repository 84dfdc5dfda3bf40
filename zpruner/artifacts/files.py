"""Files that appear whole or not at all, and that tell damage: checksums, sealed JSON, no links."""

from __future__ import annotations

import glob
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import xxhash

from zpruner.errors import ArtifactError, mend
from zpruner.runtime.system_errors import system_errors_named

_CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
_SEAL = "content_checksum"


def checksum(path: Path) -> str:
    """Return the xxh3-128 hex digest of a file's bytes."""
    digest = xxhash.xxh3_128()
    with system_errors_named(path), path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return str(digest.hexdigest())


def digest_of(value: object) -> str:
    """Return a hex digest of a JSON-like value, independent of the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return str(xxhash.xxh3_128_hexdigest(text.encode()))


class HashingFile(io.RawIOBase):
    """A write-only binary file that knows the checksum of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._digest = xxhash.xxh3_128()
        self.bytes = 0

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write a bytes-like object and return its size in bytes."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self.bytes += len(view)
        self._file.write(view)
        return len(view)

    @property
    def checksum(self) -> str:
        """The xxh3-128 hex digest of everything written so far."""
        return str(self._digest.hexdigest())


@contextmanager
def atomic_file(path: Path) -> Iterator[HashingFile]:
    """Yield a file that appears as `path`, synced and whole, when the block ends without an error; or not at all."""
    with system_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        try:
            with temporary.open("wb") as raw:
                yield HashingFile(raw)
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as `write_json` does, with a checksum of its content that `read_sealed_json` verifies."""
    write_json(path, {**value, _SEAL: digest_of(value)})


def read_sealed_json(path: Path, what: str, command: str = "dvc repro") -> dict[str, Any]:
    """Return what `write_sealed_json` wrote.

    Args:
        path: the file.
        what: it should be, in words for an error.
        command: what writes it, where it is missing.

    Raises:
        ArtifactError: missing, unreadable, truncated or altered.
    """
    try:
        value = json.loads(read_artifact(path, what, command))
        if isinstance(value, dict) and value.pop(_SEAL, None) == digest_of(value):
            return value
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        pass
    raise ArtifactError(str(path), "an altered or truncated file", f"{what} as it was written", mend(command))


def read_artifact(path: Path, what: str, command: str = "dvc repro") -> bytes:
    """Return the bytes of a file that a stage wrote.

    Raises:
        ArtifactError: no file, or one that the system does not let us read.
    """
    refuse_link(path)
    try:
        with system_errors_named(path, passing=(IsADirectoryError, NotADirectoryError)):
            return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(str(path), "no file", what, f"Run `{command}` first.") from None
    except IsADirectoryError:
        raise ArtifactError(str(path), "a folder", what, mend(command)) from None


def refuse_link(path: Path) -> None:
    """Raise ArtifactError if a file is a link that leads elsewhere than into DVC's cache, which may link its files."""
    if path.is_symlink() and _CACHED.search(target := str(path.resolve())) is None:
        raise ArtifactError(str(path), f"a link to {target}", "its own file", f"Delete it. {mend()}")


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def temporary_beside(path: Path) -> Path:
    """Return a fresh temporary path beside `path`, after deleting those that killed processes left for it.

    Whoever writes `path` holds the lock of its artifact, so that nobody else's is in use.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")
