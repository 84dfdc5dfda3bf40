"""The search under DVC: `dvc repro` leaves it out, `dvc repro search/dvc.yaml` runs what changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
from test_stage_search import SEARCH

from zpruner.search import read_log

FILE = "search/dvc.yaml"

pytestmark = [pytest.mark.timeout(900), pytest.mark.xdist_group("finished_project")]


def own(*stages: str) -> list[str]:
    return [f"{FILE}:{stage}" for stage in stages]


@pytest.fixture
def project(finished_project: Path, tmp_path: Path) -> Path:
    root = tmp_path / "p"
    shutil.copytree(finished_project, root, symlinks=True)
    (root / "source" / "other.txt").write_text(tiny.words(300, seed=77))
    text = {"source": "source/other.txt", "seqlen": 16, "batch_size": 2}
    params = tiny.read_params(root) | {"search": {**SEARCH, "text": text, "terminals": ["W", "X"], "generations": 2}}
    tiny.write_params(root, params)
    return root


def change(root: Path, **values: object) -> None:
    params = tiny.read_params(root)
    params["search"] |= values
    tiny.write_params(root, params)


def test_only_what_changed_runs_and_the_search_goes_on(project: Path) -> None:
    assert tiny.repro(project) == []
    executed = tiny.repro(project, FILE)
    assert sorted(executed[:4]) == sorted(own("plan", "sources", "text", "gradients"))
    assert executed[4:] == own("search", "report")
    first = read_log(project / "data/search/log.jsonl").evaluations
    assert "Formula search" in (project / "data/search/report/report.html").read_text()
    assert tiny.repro(project, FILE) == []
    assert tiny.repro(project) == []
    change(project, generations=3)
    assert tiny.repro(project, FILE) == own("plan", "search", "report")
    more = read_log(project / "data/search/log.jsonl").evaluations
    assert more[: len(first)] == first
    assert len(more) > len(first)


@pytest.mark.slow
def test_what_else_runs_it_again(project: Path) -> None:
    tiny.repro(project, FILE)
    # The formula found, used as a method, does not bring the search back.
    formula = json.loads((project / "data/search/best.json").read_text())
    params = tiny.read_params(project)
    params["methods"]["found"] = {"score": "expression", "settings": {"formula": formula}}
    tiny.write_params(project, params)
    assert "evaluate@found-s50" in tiny.repro(project)
    assert tiny.repro(project, FILE) == []
    # A formula that mentions G has the search collect gradients; budgets and seeds leave text and gradients alone.
    change(project, terminals=["W", "G"])
    assert tiny.repro(project, FILE) == own("plan", "gradients", "search", "report")
    change(project, seed=8)
    assert tiny.repro(project, FILE) == own("plan", "search", "report")
    change(project, seed=5)
    assert tiny.repro(project, FILE) == []  # from the run cache
