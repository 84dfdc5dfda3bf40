"""Every file that a stage opens is verified: a byte of it altered, and the stage ends with one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import staged
from opened import opened
from staged import METHOD

from stages import fetch, gradients, plan, search, search_report
from zpruner.errors import ZprunerError

SEARCH = {
    "text": {"source": "source/text.txt", "documents": "lines", "part": [0.75, 1.0], "seqlen": 16, "batch_size": 2},
    "sparsities": [0.5],
    "initial": ["mul(W, sqrt(X))"],
    "population": 3,
    "elite": 1,
    "generations": 1,
    "rungs": [1, 2],
}
INSTANCES: dict[str, Callable[[Path], None]] = {
    "plan-search": lambda root: plan.run(root, search=True),
    **staged.INSTANCES,
    "fetch-search": lambda root: fetch.run(fetch.What.search, root),
    "gradients-search": lambda root: gradients.run(root, search=True),
    "search": lambda root: search.run(root),
    "search_report": lambda root: search_report.run(root),
}
READING = [name for name in INSTANCES if name not in ("sources", "plan", "plan-search", "fetch-model")]
PROJECTS = {
    "whole": {"propagation": "dense"},
    "streamed": {"propagation": "dense", "streaming": "always"},
    "propagated": {"propagation": "pruned"},
    "propagated and streamed": {"propagation": "pruned", "streaming": "always"},
    "made in memory": {"propagation": "dense", "checkpoints": []},
    "gradients": {"propagation": "dense", "methods": {METHOD: {"score": "pruner_zero"}}},
}


@pytest.fixture(scope="session", params=PROJECTS)
def complete(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A project after every stage."""
    changes = dict(PROJECTS[request.param])
    streaming, checkpoints = changes.pop("streaming", "never"), changes.pop("checkpoints", "all")
    root = staged.make(tmp_path_factory.mktemp("opened") / "project", **changes)
    staged.change_params(root, "machine.streaming", streaming)
    staged.change_params(root, "evaluation.checkpoints", checkpoints)
    staged.change_params(root, "evaluation.perplexity.part", [0.5, 0.75])
    staged.change_params(root, "search", SEARCH)
    for name, instance in INSTANCES.items():
        if streaming == "never" or not name.startswith(("gradients", "search")):
            instance(root)
    for name in (".work", ".searches", ".downloads"):
        shutil.rmtree(root / "data" / name, ignore_errors=True)
    return request.param, root


@pytest.mark.parametrize("complete", ["propagated"], indirect=True)
def test_a_file_of_each_kind_that_a_stage_opens_is_verified(complete: tuple[str, Path], tmp_path: Path) -> None:
    assert verified(*complete, tmp_path / "project", every=False) > 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("complete", PROJECTS, indirect=True)
def test_every_file_that_a_stage_opens_is_verified(complete: tuple[str, Path], tmp_path: Path) -> None:
    assert verified(*complete, tmp_path / "project", every=True) > 100


def verified(kind: str, finished: Path, root: Path, *, every: bool) -> int:
    """Alter each file that a stage opens, or one of each folder and suffix; returns how many were."""
    shutil.copytree(finished, root)
    tried = 0
    for name in READING:
        if "streamed" in kind and name.startswith(("gradients", "search")):
            continue
        with opened(root / "data") as files:
            INSTANCES[name](root)
        shutil.rmtree(root / "data" / ".work", ignore_errors=True)
        chosen = files if every else {(path.parent, path.suffix): path for path in sorted(files)}.values()
        for path in chosen:
            refused(root, INSTANCES[name], path)
            tried += 1
    return tried


def untimed(root: Path) -> dict[str, bytes]:
    """Return every artifact but those that hold timings: costs, and the logs of searches."""
    found = staged.artifacts(root).items()
    return {name: data for name, data in found if "costs" not in name and not name.endswith("log.jsonl")}


def refused(root: Path, instance: Callable[[Path], None], path: Path) -> None:
    """Alter a byte in the middle of a file, and run a stage: one sentence that names the file, and no artifact changes.

    A stage that uses nothing of the file but its header ends as if nothing had happened.
    """
    before = untimed(root)
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    try:
        instance(root)
    except ZprunerError as error:
        assert path.name in str(error), str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    path.write_bytes(good)
    assert untimed(root) == before, path
    shutil.rmtree(root / "data" / ".work", ignore_errors=True)
