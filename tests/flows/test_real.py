"""The flow on a real (tiny) project: the same dvc.lock as `dvc repro`, and caches shared between two clones."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from toys import commit, lock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def untimed(root: Path) -> dict[str, Any]:
    """Return dvc.lock without what depends on how long things took."""
    stages = lock(root)
    for stage in stages.values():
        for kind in ("deps", "outs"):
            stage[kind] = [
                entry for entry in stage.get(kind, []) if not re.match(r"data/(costs|report)", entry["path"])
            ]
    return stages


def flow(root: Path, *arguments: str) -> list[str]:
    """Run the flow from the command line; returns the instances that were executed, sorted."""
    done = tiny.run([sys.executable, "-m", "flows.pipeline", *arguments], root)
    return sorted(re.findall(r"Running stage '(.*?)'", done.stdout + done.stderr))


def test_flow_worker_and_plain_dvc_give_the_same_lock(finished_project: Path, tmp_path: Path) -> None:
    plain = tiny.make_project(tmp_path / "plain")
    tiny.run(["dvc", "repro"], plain)
    assert untimed(plain) == untimed(finished_project)  # which was made in the warm worker
    root = tiny.make_project(tmp_path / "p")
    executed = flow(root, "--parallel", "2")
    assert executed == sorted(untimed(finished_project))
    assert untimed(root) == untimed(finished_project)
    assert flow(root) == []


def test_a_clone_neither_calibrates_nor_scores(finished_project: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    shutil.copytree(finished_project, first, symlinks=True)
    tiny.run([sys.executable, "-m", "flows.share", "add", str(tmp_path / "remote")], first)
    commit(first)
    assert flow(first, "--share") == []
    tiny.run(["git", "clone", "-q", str(first), str(second)], tmp_path)
    assert flow(second, "--share") == []
    kept = ("costs/", ".work", ".downloads", "sources/")  # links: a clone does without until one is needed
    assert tiny.files_of(second / "data", kept) == tiny.files_of(first / "data", kept)
    params = tiny.read_params(second)
    params["sparsities"]["s60"] = 0.6
    tiny.write_params(second, params)
    new = [
        f"{stage}@{method}-s60" for stage in ("apply", "evaluate", "mask", "pack") for method in ("wanda", "zpruner")
    ]
    assert flow(second, "--share") == sorted([*new, "plan", "report"])
