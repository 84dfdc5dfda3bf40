"""Which stage instances ran on this machine, and which of them since the last report: the rest came from a cache.

A ledger of one line per run in the work folder, out of DVC's and git's sight; without it, everything counts as cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zpruner.artifacts.files import checksum, digest_of
from zpruner.artifacts.sealed_lines import read_lines, seal_line

LEDGER = "ran.jsonl"


def note_run(work_root: Path, cost: Path) -> None:
    """Add a stage instance that has just written its cost file."""
    _append(work_root, {"cost": checksum(cost)})


def computed(work_root: Path, costs: Path) -> frozenset[str]:
    """Return which files below `costs` were written here since the report before this one, and note this report.

    A report made again from the same files gives the same answer.
    """
    files = {str(path.relative_to(costs)): checksum(path) for path in sorted(costs.rglob("*.json")) if path.is_file()}
    this = digest_of(files)
    lines = list(_read(work_root))
    reports = [i for i, line in enumerate(lines) if line.get("report", this) != this]
    ran = {line.get("cost") for line in lines[reports[-1] + 1 if reports else 0 :]}
    if not lines or lines[-1].get("report") != this:
        _append(work_root, {"report": this})
    return frozenset(name for name, digest in files.items() if digest in ran)


def _append(work_root: Path, line: dict[str, str]) -> None:
    work_root.mkdir(parents=True, exist_ok=True)
    with (work_root / LEDGER).open("ab") as out:
        out.write(seal_line(line, "")[0])


def _read(work_root: Path) -> Iterator[dict[str, Any]]:
    path = work_root / LEDGER
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        yield from read_lines(line, "")[0]  # several processes append: no line rests on the one before it
