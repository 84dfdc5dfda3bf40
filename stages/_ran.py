"""Which stage instances ran on this machine, and which of them since the last report: the rest came from a cache.

A ledger of one line per run in the work folder, out of DVC's and git's sight; without it, everything counts as cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zpruner.artifacts.work import checksum, digest_of

LEDGER = "ran.jsonl"


def note_run(work_root: Path, cost: Path) -> None:
    """Add a stage instance that has just written its cost file."""
    _append(work_root, {"cost": checksum(cost)})


def computed(work_root: Path, costs: Path) -> frozenset[str]:
    """Return which files below `costs` were written here since the report before this one, and note this report.

    A report made again from the same files gives the same answer.
    """
    files = {str(path.relative_to(costs)): checksum(path) for path in sorted(costs.rglob("*.json"))}
    this = digest_of(files)
    lines = list(_read(work_root))
    reports = [i for i, line in enumerate(lines) if line.get("report", this) != this]
    ran = {line.get("cost") for line in lines[reports[-1] + 1 if reports else 0 :]}
    if not lines or lines[-1].get("report") != this:
        _append(work_root, {"report": this})
    return frozenset(name for name, digest in files.items() if digest in ran)


def _append(work_root: Path, line: dict[str, str]) -> None:
    work_root.mkdir(parents=True, exist_ok=True)
    with (work_root / LEDGER).open("a", encoding="ascii") as out:
        out.write(json.dumps(line) + "\n")


def _read(work_root: Path) -> Iterator[dict[str, Any]]:
    path = work_root / LEDGER
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(entry, dict):
            yield entry
