"""The benchmark of memory, sized down: every stage runs, and prints its row."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny


@pytest.mark.slow
def test_every_stage_has_its_row(tmp_path: Path) -> None:
    script = tiny.REPOSITORY / "benchmarks" / "memory.py"
    command = [sys.executable, str(script), "--layers", "2", "--hidden", "384", "--work", str(tmp_path)]
    out = tiny.run(command, tiny.REPOSITORY).stdout
    rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ") and "GB" in line]
    assert rows == ["fetch", "calibrate", "score", "mask", "apply", "evaluate"]
    assert not list(tmp_path.iterdir())
