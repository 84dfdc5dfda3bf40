"""Crash-safe building of one artifact: a folder that survives the process, and a journal of what is finished.

The folder lies outside the sight of DVC and git and is keyed by everything that determines the result, so that a
killed stage goes on at its first unfinished item and a changed stage starts anew. A file counts as finished once it
is written, synced, renamed and journalled with its checksum; the checksum is verified again on resuming.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import IO, Any, Self, cast

import xxhash

from zpruner.artifacts.sealed_lines import read_lines, seal_line
from zpruner.errors import ArtifactError, LockedError, mend
from zpruner.runtime.system_errors import system_errors_named

JOURNAL = "journal.jsonl"
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
        temporary = _temporary(path)
        try:
            with temporary.open("wb") as raw:
                yield HashingFile(raw)
                raw.flush()
                os.fsync(raw.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as `write_json` does, with a checksum of its own content that `read_sealed_json` verifies."""
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
        raise ArtifactError(str(path), f"a link to {target}", "a file of its own", f"Delete it. {mend()}")


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON with sorted keys."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


class Work:
    """The resumable folder of one artifact. Use as a context manager; it holds a lock that dies with the process.

    Args:
        root: where work folders lie (same file system as the artifacts, so that finishing is a rename).
        name: the stage instance, e.g. `mask-wanda-s24`; one process at a time works on a name.
        key: digest of everything that determines the result (settings, code, inputs).

    Raises:
        LockedError: another process works on the same name.
    """

    def __init__(self, root: Path, name: str, key: str) -> None:
        self.root, self.name = root, name
        self.folder = root / name / key
        self.files = self.folder / "files"
        """What `publish` publishes."""
        self.scratch = self.folder / "scratch"
        """What only a resumed run needs."""
        self._lock: IO[str] | None = None
        self._records: dict[str, dict[str, Any]] = {}
        self._origin = self._seal = f"{name} {key}"
        self._recording = Lock()  # files are written on several threads
        self._earlier = 0.0
        self._opened = 0.0

    def __enter__(self) -> Self:
        parent = self.folder.parent
        with system_errors_named(parent / "lock"):
            parent.mkdir(parents=True, exist_ok=True)
            self._lock = (parent / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise LockedError(
                str(parent),
                "a lock held by another process",
                "one process per stage instance",
                "Wait for it to end, or stop it; the lock is freed when the process dies.",
            ) from None
        with system_errors_named(self.folder):
            for old in parent.iterdir():
                if old.is_dir() and old != self.folder:
                    shutil.rmtree(old)
            self.files.mkdir(parents=True, exist_ok=True)
            self.scratch.mkdir(exist_ok=True)
            for leftover in self.folder.rglob(".*.tmp-*"):  # of a process killed while writing
                leftover.unlink()
            self._opened = perf_counter()
            self._records = self._read_journal()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def seconds(self) -> float:
        """Time spent on this artifact, that of interrupted runs up to their last finished item included."""
        return self._earlier + perf_counter() - self._opened

    def done(self, item: str) -> dict[str, Any] | None:
        """Return the journalled payload of a finished item, or None."""
        return self._records.get(item)

    def items(self) -> Mapping[str, dict[str, Any]]:
        """Return all finished items with their payloads, in the order they were finished."""
        return self._records

    def record(self, item: str, payload: Mapping[str, Any], file: Path | None = None, digest: str = "") -> None:
        """Journal an item as finished; with the checksum of its `file` (inside `folder`), where it has one."""
        name = None if file is None else str(file.relative_to(self.folder))
        entry = {"item": item, "file": name, "checksum": digest, "payload": dict(payload), "seconds": self.seconds}
        journal = self.folder / JOURNAL
        with self._recording:
            line, seal = seal_line(entry, self._seal)
            with system_errors_named(journal), journal.open("ab") as out:
                out.write(line)
                out.flush()
                os.fsync(out.fileno())
            self._seal = seal
            self._records[item] = dict(payload)

    def publish(self, out: Path) -> None:
        """Make `out` a folder of exactly the files built here, in one rename; the work folder keeps its links.

        The links stay until the artifact is known to be safe (see `sweep`), so that a run killed between here and
        the caller's bookkeeping repeats nothing.
        """
        staging = _temporary(out)
        with system_errors_named(out):
            staging.mkdir(parents=True)
            for source in sorted(self.files.rglob("*")):
                target = staging / source.relative_to(self.files)
                if source.is_dir():
                    target.mkdir()
                else:
                    _link_or_copy(source, target)
            if out.is_dir() and not out.is_symlink():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
            staging.replace(out)

    def _read_journal(self) -> dict[str, dict[str, Any]]:
        """Return the finished items whose files are whole; what is torn is cut off."""
        journal = self.folder / JOURNAL
        records: dict[str, dict[str, Any]] = {}
        self._seal = self._origin
        if not journal.exists():
            return records
        content = journal.read_bytes()
        entries, length, self._seal = read_lines(content, self._origin)
        for entry in entries:
            self._earlier = float(entry["seconds"])
            path = None if entry["file"] is None else self.folder / entry["file"]
            if path is not None and not (path.is_file() and checksum(path) == entry["checksum"]):
                records.pop(entry["item"], None)
                continue
            records[entry["item"]] = cast("dict[str, Any]", entry["payload"])
        if length < len(content):
            with atomic_file(journal) as file:
                file.write(content[:length])
        return records


def sweep(root: Path) -> None:
    """Delete every work folder whose lock nobody holds: called once all artifacts are safely stored."""
    for parent in sorted(path for path in root.glob("*") if path.is_dir()):
        with (parent / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(parent)


def _temporary(path: Path) -> Path:
    """Return a fresh temporary path beside `path`, after deleting those that killed processes left for it.

    Whoever writes `path` holds the lock of its artifact, so that nobody else's is in use.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)
