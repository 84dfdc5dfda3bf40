"""The same settings on the same machine give the same bytes, in whatever process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import staged
import tiny

RUN = "import pathlib, sys, staged; staged.run_all(pathlib.Path(sys.argv[1]), 'evaluate')"
METHOD = {"score": "alps", "update": "least_squares", "correct": {}}


def test_a_fresh_process_gives_the_same_bytes(tmp_path: Path) -> None:
    here, there = (
        staged.make(tmp_path / name / "project", propagation="pruned", methods={staged.METHOD: METHOD})
        for name in ("here", "there")
    )
    staged.run_all(here, "evaluate")
    path = [str(tiny.REPOSITORY), str(tiny.REPOSITORY / "tests"), str(tiny.REPOSITORY / "tests" / "stages")]
    environment = tiny.environment() | {"PYTHONPATH": ":".join(path), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", RUN, str(there)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, expected = staged.artifacts(there), staged.artifacts(here)
    assert any(name.startswith("pruned/") and name.endswith(".safetensors") for name in expected)
    assert [name for name in expected if found.get(name) != expected[name]] == []
    assert found.keys() == expected.keys()
