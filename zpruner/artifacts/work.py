"""Crash-safe building of one artifact: a folder that survives the process, and a journal of what is finished.

The folder lies outside the sight of DVC and git and is keyed by everything that determines the result, so that a
killed stage continues at its first unfinished item and a changed stage starts anew. A file counts as finished once it
is written, synced, renamed and journalled with its checksum; the checksum is verified again on resuming.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from time import perf_counter
from types import TracebackType
from typing import IO, Any, Self, cast

from zpruner.artifacts.files import atomic_file, checksum, temporary_beside
from zpruner.artifacts.sealed_lines import read_lines, seal_line
from zpruner.errors import LockedError
from zpruner.runtime.system_errors import system_errors_named

JOURNAL = "journal.jsonl"
_SYNCED = 1.0
"""Seconds from one sync of the journal to the next: what a failure of the machine may cost; a torn line is cut off."""


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
        self._synced = 0.0

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
                if (now := perf_counter()) - self._synced > _SYNCED:
                    os.fsync(out.fileno())
                    self._synced = now
            self._seal = seal
            self._records[item] = dict(payload)

    def publish(self, out: Path) -> None:
        """Make `out` a folder of exactly the files built here, in one rename; the work folder keeps its links.

        The links stay until the artifact is known to be safe (see `sweep`), so that a run killed between here and
        the caller's bookkeeping repeats nothing.
        """
        staging = temporary_beside(out)
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


def _link_or_copy(source: str | Path, target: str | Path) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copy2(source, target)
