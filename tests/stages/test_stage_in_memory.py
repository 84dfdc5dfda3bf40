"""Variants without a checkpoint of their own: made in memory when they are evaluated, with the same numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import staged
import tiny
import torch
from typer.testing import CliRunner

import zpruner
from stages import apply, evaluate, report
from zpruner.checkpoint import Checkpoint
from zpruner.cli import app
from zpruner.errors import InvalidSettingError
from zpruner.text import read_windows

NAME = f"{staged.METHOD}/{staged.SPARSITY}"


@pytest.fixture(scope="module", params=["dense", "pruned"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project whose variant, with a weight update, has a checkpoint."""
    root = staged.make(tmp_path_factory.mktemp("written") / "project", propagation=request.param)
    return staged.run_all(root)


def results(root: Path) -> tuple[dict, dict]:
    path = root / "data" / "evaluation" / staged.METHOD / f"{staged.SPARSITY}.json"
    found = [json.loads(file.read_text()) for file in (path, path.with_name(f"{staged.SPARSITY}.layers.json"))]
    for each in found:
        del each["content_checksum"]
    return found[0], found[1]


@pytest.mark.parametrize("streaming", ["never", "always"])
def test_the_numbers_are_those_of_the_checkpoint(written: Path, streaming: str, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(written, root)
    before, details = results(root)
    staged.change_params(root, "evaluation.checkpoints", [])
    staged.change_params(root, "machine.streaming", streaming)
    apply.run(staged.METHOD, staged.SPARSITY, root)
    folder = root / "data" / "pruned" / staged.METHOD / staged.SPARSITY
    assert [path.name for path in folder.iterdir()] == ["zpruner.json"]
    evaluate.run(staged.METHOD, staged.SPARSITY, root=root)
    after, again = results(root)
    assert after == before
    assert (details["provenance"].pop("weights"), again["provenance"].pop("weights")) == (
        "checkpoint",
        "made in memory",
    )
    assert again["provenance"].pop("pruned_weights")
    assert details["provenance"].pop("hash") != again["provenance"].pop("hash")
    assert again == details
    report.run(root=root)
    assert "none: made in memory" in (root / "data" / "report" / "report.md").read_text()

    found = CliRunner().invoke(app, ["export", staged.METHOD, staged.SPARSITY, "-o", "out", "--root", str(root)])
    assert "made in memory" in str(found.exception) + found.output
    assert NAME in str(found.exception) + found.output

    # Named later, it is written, the same as ever.
    staged.change_params(root, "evaluation.checkpoints", ["*/s24"])
    apply.run(staged.METHOD, staged.SPARSITY, root)
    assert Checkpoint(folder).model_hash == Checkpoint(written / folder.relative_to(root)).model_hash


def test_a_solver_s_sweep_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"methods": {staged.METHOD: {"score": "sparsegpt", "update": "obs"}}}
    root = staged.run_all(staged.make(tmp_path / "project", **changes), until="mask")
    windows, _ = read_windows(root / "data/calibration/tokens.arrow")
    model, _ = zpruner.load(root / "data/models/dense")
    calibration = zpruner.calibrate(model, windows, batch_size=2, for_methods="sparsegpt")
    zpruner.prune(model, calibration, method="sparsegpt", sparsity="2:4")

    def again(*_: object) -> None:
        raise AssertionError("the update was run")

    monkeypatch.setattr("zpruner.updates.obs.Obs.update", again)
    apply.run(staged.METHOD, staged.SPARSITY, root)
    found, _ = zpruner.load(root / "data/pruned" / NAME)
    for name, weight in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight), name


def test_the_end_of_a_run_is_printed_once(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(written, tmp_path / "project")
    capsys.readouterr()
    report.run(root=root)
    out = capsys.readouterr().out
    assert "report.html" in out
    assert "zpruner advise" in out
    monkeypatch.setenv(report.ENDS_LATER, "1")
    report.run(root=root)
    assert capsys.readouterr().out == "", "make repro prints it after DVC's last words"
    report.run(table=True, root=root)
    assert capsys.readouterr().out == out


def test_the_manifest_follows_the_weights(written: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(written, root)
    staged.change_params(root, "evaluation.checkpoints", [])
    folder = root / "data" / "pruned" / staged.METHOD / staged.SPARSITY
    found = []
    for update in ("obs", "obs", "least_squares"):
        params = tiny.read_params(root)
        params["methods"][staged.METHOD]["update"] = update
        tiny.write_params(root, params)
        if update != "obs":
            for name in ("score", "mask"):
                staged.INSTANCES[name](root)
        apply.run(staged.METHOD, staged.SPARSITY, root)
        found.append(Checkpoint(folder).manifest["pruned_weights"])
        shutil.rmtree(root / "data" / ".work")
    assert found[0] == found[1] != found[2]


def test_a_pattern_that_matches_nothing(written: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(written / "params.yaml", root)
    staged.change_params(root, "evaluation.checkpoints", ["swaped/s24"])
    with pytest.raises(InvalidSettingError, match=r"evaluation\.checkpoints: got 'swaped.*mean 'swapped/s24'"):
        apply.run(staged.METHOD, staged.SPARSITY, root)


@pytest.mark.slow
def test_a_changed_list_runs_apply_and_evaluate_only(finished_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(finished_project, root, symlinks=True)
    staged.change_params(root, "evaluation.checkpoints", ["wanda/s50"])
    executed = tiny.repro(root)
    changed = ["wanda-s24", "zpruner-s50", "zpruner-s24"]
    chain = [f"{stage}@{name}" for stage in ("apply", "pack", "evaluate") for name in changed]
    assert sorted(executed) == sorted(["plan", *chain, "report"])
