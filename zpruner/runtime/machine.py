"""What this process may use of the machine: those cores and that memory which its container leaves it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_NO_LIMIT = 1 << 60
"""Version 1 of control groups writes a number near 2^63 where there is no limit, version 2 the word `max`."""


@dataclass(frozen=True)
class _Group:
    """A control group that this process belongs to: its folder, and which version's files lie there."""

    folder: Path
    version: int

    def read(self, names: tuple[str, str]) -> str | None:
        """Return the text of the file so called in version 1 or 2, or None where there is none."""
        path = self.folder / names[self.version - 1]
        return path.read_text(encoding="ascii") if path.is_file() else None


def cores(root: Path = _ROOT) -> int:
    """Return the number of processor cores that this process may use, a share of one counted as one."""
    found = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quotas = [quota for group in _groups("cpu", root) if (quota := _quota(group)) is not None]
    return max(1, math.ceil(min([found, *quotas])))


def free_memory(root: Path = _ROOT) -> int:
    """Return the bytes of main memory that this process can take: what is free, or what its container leaves."""
    free = [room for group in _groups("memory", root) if (room := _room(group)) is not None]
    return max(0, min([_machine_memory(root), *free]))


def _machine_memory(root: Path) -> int:
    facts = root / "proc" / "meminfo"
    if not facts.is_file():  # not Linux; how much of it is free no standard call tells
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return _entry(facts.read_text(encoding="ascii"), "MemAvailable:") * 1024


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """Yield this process's group and all above it, each of which may have a limit, as far as they can be seen."""
    mine = root / "proc" / "self" / "cgroup"
    for line in mine.read_text(encoding="utf-8").splitlines() if mine.is_file() else []:
        _, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if controllers and controller not in names:
            continue
        mount = root / "sys" / "fs" / "cgroup" / (controllers and controller)
        # A container may see its own group as the root, by a path that only its host knows.
        folder = mount / path.lstrip("/")
        if ".." in folder.parts or not folder.is_dir():
            folder = mount
        for one in (folder, *folder.parents):
            if one.is_relative_to(mount):
                yield _Group(one, 1 if controllers else 2)


def _room(group: _Group) -> int | None:
    """Return what a group leaves of its limit. Cached files count as used, but give way."""
    limit = group.read(("memory.limit_in_bytes", "memory.max"))
    used = group.read(("memory.usage_in_bytes", "memory.current"))
    if limit is None or used is None or limit.strip() == "max" or int(limit) >= _NO_LIMIT:
        return None
    facts = group.read(("memory.stat", "memory.stat")) or ""
    return int(limit) - int(used) + _entry(facts, ("total_inactive_file", "inactive_file")[group.version - 1])


def _quota(group: _Group) -> float | None:
    """Return how many cores' time a group may use, None where it has no limit."""
    if group.version == 2:
        text = group.read(("", "cpu.max"))
        words = text.split() if text else ["max"]
    else:
        words = [group.read((name, "")) or "-1" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    return None if words[0] == "max" or int(words[0]) <= 0 else int(words[0]) / int(words[1])


def _entry(text: str, name: str) -> int:
    """Return the number behind a name at the start of a line, 0 where there is none."""
    lines = (line.split() for line in text.splitlines())
    return next((int(words[1]) for words in lines if words[:1] == [name]), 0)
