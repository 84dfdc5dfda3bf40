"""Mends what DVC leaves half-written when it is killed: it writes its notes in place.

dvc.lock is empty or cut off while DVC writes it, which takes 0.2 s with 20 instances and 1.4 s with 150, after every
instance; left like that it stops every later command. So does its list of who is at work on which paths, where an
entry of a dead process names an id that another process has since got.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import psutil
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.utils.serialize import YAMLFileCorruptedError, parse_yaml
from dvc.utils.strictyaml import YAMLValidationError

from zpruner.artifacts.files import atomic_file, write_json

UNREADABLE = (YAMLFileCorruptedError, YAMLValidationError)
CONFLICT = re.compile(r"^([<=>]{7})( |$)", re.MULTILINE)
"""What git leaves where two versions disagree."""
CLOCK_SECONDS = 2.0
"""By how much the time at which a process began may be off."""


def mend(root: Path) -> None:
    """Make the project at `root` one that DVC can work in, however it was left.

    Raises:
        dvc.exceptions.DvcException: a file of DVC's that is wrong in another way.
    """
    with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:  # held by whoever is writing dvc.lock
        mend_locks(repo)
        forget_dead(repo)


def mend_locks(repo: Repo) -> None:
    """Reduce every dvc.lock that is cut off to its whole entries; DVC's run cache has what the others said.

    Raises:
        dvc.exceptions.DvcException: a file of DVC's that is wrong in another way.
    """
    while True:
        try:
            repo.index.stages  # noqa: B018 - reads them all
        except UNREADABLE as error:
            path = Path(error.path).resolve()
            kept = _whole_entries(path)
            if kept is None:
                raise
            if kept:
                with atomic_file(path) as file:
                    file.write(kept.encode())
            else:
                path.unlink()
            print(f"{error.path} was cut off, as DVC leaves it when it is killed: mended", file=sys.stderr)
            repo._reset()
        else:
            return


def _whole_entries(path: Path) -> str | None:
    """Return what a dvc.lock that was cut off has of whole entries ("": none), or None if it was not cut off."""
    if path.name != LOCK_FILE:
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if CONFLICT.search(text):
        return None
    entries = [match.start() for match in re.finditer(r"^  \S", text, re.MULTILINE)]
    if len(entries) < 2:
        return "" if text.startswith("schema:") or not text else None
    kept = text[: entries[-1]]
    try:
        Lockfile.validate(parse_yaml(kept, str(path)), str(path))
    except DvcException:
        return None
    return kept


def forget_dead(repo: Repo) -> None:
    """Remove from DVC's list of who is at work on which paths those that are dead.

    DVC removes them itself while their process id is unused.
    """
    path = Path(repo.tmp_dir) / RWLOCK_FILE
    if not path.exists():
        return
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(path.with_name(RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink, wait=True):
        written = path.stat().st_mtime
        try:
            before: dict[str, dict[str, Any]] | None = json.loads(path.read_bytes())
        except ValueError:  # cut off, with the process that was writing it
            before = None
        writers, readers = ((before or {}).get(way, {}) for way in ("write", "read"))
        after: dict[str, dict[str, Any]] = {
            "write": {at: one for at, one in writers.items() if _lives(one["pid"], written)},
            "read": {
                at: left
                for at, all_ in readers.items()
                if (left := [one for one in all_ if _lives(one["pid"], written)])
            },
        }
        if before is None or (writers, readers) != (after["write"], after["read"]):
            write_json(path, after)


def _lives(pid: int, written: float) -> bool:
    """Return whether a process that was there at the time `written` still is."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < written + CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False
