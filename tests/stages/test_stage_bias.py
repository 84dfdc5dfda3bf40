"""Biases that take up means, through the stages: the same as in memory, streamed, resumed, made in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny
import torch
from transformers import AutoModelForCausalLM

import zpruner
from stages import apply, evaluate, mask, score
from zpruner.artifacts.work import Work
from zpruner.text import read_windows

METHOD: dict[str, Any] = {
    "score": "wanda",
    "structures": {"neurons": "flap"},
    "update": "least_squares",
    "measure": "submodule",
    "correct_bias": True,
}
SPARSITIES = {"s50": 0.5, "w50": "neurons:0.5"}


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    with staged.couplings_found_once("opt"):
        yield


@pytest.fixture(scope="module", params=["dense", "pruned"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = staged.make(
        tmp_path_factory.mktemp("bias") / "project",
        "opt",
        methods={"mine": METHOD},
        sparsities=SPARSITIES,
        propagation=request.param,
    )
    staged.change_params(root, "machine.streaming", "never")
    staged.run_all(root, "gradients")
    score.run("mine", root)
    for sparsity in SPARSITIES:
        mask.run("mine", sparsity, root)
        apply.run("mine", sparsity, root)
    return root


def again(project: Path, tmp_path: Path, name: str, value: Any) -> Path:
    """Return a copy of a project with another setting, its variants to be made again."""
    root = tmp_path / "again"
    shutil.copytree(project, root)
    for made in ("scores", "masks", "solved", "pruned", ".work"):
        shutil.rmtree(root / "data" / made)
    staged.change_params(root, name, value)
    score.run("mine", root)
    return root


def same(project: Path, root: Path, sparsity: str) -> bool:
    """Return whether a variant came out the same in two projects, to the byte."""
    return all(
        tiny.files_of(project / f"data/{made}/mine/{sparsity}") == tiny.files_of(root / f"data/{made}/mine/{sparsity}")
        for made in ("masks", "solved", "pruned")
    )


def measured(root: Path, sparsity: str) -> list[dict[str, Any]]:
    names = (f"{sparsity}.json", f"{sparsity}.layers.json")
    found = [json.loads((root / "data/evaluation/mine" / name).read_text(encoding="utf-8")) for name in names]
    made_differently = ("checksum", "content_checksum", "provenance")
    return [{key: value for key, value in values.items() if key not in made_differently} for values in found]


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_the_checkpoint_is_what_the_library_makes_in_memory(project: Path, sparsity: str) -> None:
    made = AutoModelForCausalLM.from_pretrained(project / "data/pruned/mine" / sparsity)
    model, _ = zpruner.load(project / "data/models/dense")
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    windows = read_windows(project / "data/calibration/tokens.arrow")[0]
    params = tiny.read_params(project)
    pattern = SPARSITIES[sparsity]
    if params["calibration"]["propagation"] == "pruned":
        size = params["calibration"]["batch_size"]
        zpruner.prune_sequentially(model, windows, method=METHOD, sparsity=pattern, batch_size=size)
    else:
        found = zpruner.calibrate(model, windows, for_methods=METHOD, batch_size=params["calibration"]["batch_size"])
        zpruner.prune(model, found, method=METHOD, sparsity=pattern)
    expected = model.state_dict()
    for name, value in made.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    fc2 = "model.decoder.layers.1.fc2.bias"
    assert not torch.equal(made.state_dict()[fc2], dense[fc2])


@pytest.mark.parametrize("project", ["dense"], indirect=True)
def test_made_in_memory_it_has_the_same_numbers(project: Path, tmp_path: Path) -> None:
    root = again(project, tmp_path, "evaluation.checkpoints", [])
    mask.run("mine", "s50", root)
    apply.run("mine", "s50", root)
    for where in (root, project):
        evaluate.run("mine", "s50", root=where)
    assert measured(root, "s50") == measured(project, "s50")
    layers = measured(project, "s50")[1]["layers"]
    assert all(0 < layer["layer_error"] < 0.5 for layer in layers)


class Killed(BaseException):
    """Stands for a kill right after something was journalled."""


@pytest.mark.parametrize("sparsity", ["w50", pytest.param("s50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("project", [pytest.param("dense", marks=pytest.mark.slow), "pruned"], indirect=True)
@pytest.mark.parametrize("after", [14, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_streamed_it_is_the_same_to_the_byte(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sparsity: str, after: int
) -> None:
    root = again(project, tmp_path, "machine.streaming", "always")
    record = Work.record
    left = [after]

    def killed(self: Work, *args: Any) -> None:
        record(self, *args)
        left[0] -= 1
        if not left[0]:
            raise Killed

    monkeypatch.setattr(Work, "record", killed)
    with pytest.raises(Killed):
        mask.run("mine", sparsity, root)
    monkeypatch.setattr(Work, "record", record)
    mask.run("mine", sparsity, root)
    apply.run("mine", sparsity, root)
    assert same(project, root, sparsity)
