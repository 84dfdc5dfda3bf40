"""A method of another, really installed package runs in the pipeline; a change of its code re-runs it alone."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import staged
import tiny
import torch

import zpruner
from stages import plan
from stages._plan import read_planned
from zpruner.artifacts.store import ArtifactReader
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.settings.reading import read_params

pytestmark = pytest.mark.xdist_group("finished_project")
METHOD = '''
from zpruner import PruningMethod, Stat
from foreign.helper import scaled


class Foreign(PruningMethod):
    """|W| times the largest input."""

    needs = frozenset({Stat.MAX_ABS})

    def score(self, weight, stats):
        return scaled(weight, stats.require(Stat.MAX_ABS))
'''
HELPER = "def scaled(weight, size):\n    return weight.abs() * size\n"
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "foreign"
version = "1.0"
[project.entry-points."zpruner.methods"]
foreign = "foreign.method:Foreign"
[tool.setuptools]
packages = ["foreign"]
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "foreign").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "foreign" / "__init__.py").write_text("")
    (source / "foreign" / "method.py").write_text(METHOD)
    (source / "foreign" / "helper.py").write_text(HELPER)
    folder = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    tiny.run([*command, "--disable-pip-version-check", "--target", str(folder), str(source)], tmp_path)
    return folder


def test_an_installed_packages_method_runs_in_the_stages(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(site))
    root = staged.make(tmp_path / "project", methods={staged.METHOD: {"score": "foreign", "group": "row"}})
    staged.run_all(root, "mask")
    scores = ArtifactReader(root / "data" / "scores" / staged.METHOD, "scores")
    layer = Activations(root / "data" / "activations" / "dense").layers[0].name
    assert scores.provenance.method == "foreign"
    calibration = Activations(root / "data" / "activations" / "dense")
    weight = Checkpoint(root / "data" / "models" / "dense").read_weight(calibration.layers[0])
    expected = weight.abs() * calibration.stats(layer).require(zpruner.Stat.MAX_ABS)
    assert torch.equal(scores.read(layer)["score"], expected)

    def code() -> str:
        plan._parsed.cache_clear()
        tiny.plan(root)
        return read_planned(root / "data" / "plan", read_params(root / "params.yaml"), ("score", staged.METHOD)).code

    before = code()
    helper = site / "foreign" / "helper.py"
    helper.write_text(f"# another comment\n{HELPER}")
    assert code() == before
    helper.write_text(HELPER.replace("* size", "* size.square()"))
    assert code() != before


@pytest.mark.slow
def test_an_installed_packages_method_runs_in_the_pipeline(finished_project: Path, site: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished_project, tmp_path / "project", symlinks=True)
    params = tiny.read_params(root)
    params["methods"]["mine"] = {"score": "foreign", "group": "row"}
    params["sparsities"] = {"s50": 0.5}
    tiny.write_params(root, params)

    def executed(*targets: str) -> list[str]:
        found = os.pathsep.join([str(root), str(site)])
        done = tiny.run(["dvc", "repro", *targets], root, PYTHONPATH=found)
        return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage '")]

    assert executed("mask@mine-s50") == ["plan", "score@mine", "mask@mine-s50"]
    assert executed("mask@mine-s50") == []
    helper = site / "foreign" / "helper.py"
    helper.write_text(HELPER.replace("* size", "* size.square()"))
    assert executed("mask@mine-s50") == ["plan", "score@mine", "mask@mine-s50"], "and no other method"
    assert executed("mask@mine-s50") == []
    helper.write_text(f"# a comment\n{helper.read_text()}")
    assert executed("mask@mine-s50") == ["plan"]
