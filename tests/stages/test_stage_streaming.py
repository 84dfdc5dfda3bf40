"""The pipeline with weights read block by block: the same bytes as with the model in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny

from stages import calibrate, evaluate, mask
from stages._layers import LayerFacts
from zpruner.execution import Runner, StreamedRunner


@pytest.fixture(scope="module", params=["dense", "pruned"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project, run to the evaluation with the model in memory."""
    root = staged.make(tmp_path_factory.mktemp("whole") / "project", propagation=request.param)
    staged.change_params(root, "machine.streaming", "never")
    return staged.run_all(root, "evaluate")


def test_every_artifact_is_the_same(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts, ignore=shutil.ignore_patterns("data"))
    staged.change_params(parts, "machine.streaming", "always")
    staged.change_params(parts, "machine.memory", 1e-6)  # no room: all hidden states go to disk
    staged.run_all(parts, "evaluate")
    assert staged.artifacts(parts) == staged.artifacts(whole)
    costs = [json.loads(path.read_text()) for path in (parts / "data" / "costs").rglob("*.json")]
    assert {cost["stage"] for cost in costs if cost.get("streamed")} == {"calibrate", "evaluate"}
    assert "calibrate: block by block: machine.streaming is always" in capsys.readouterr().err


def test_auto_goes_by_the_memory(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "auto"
    shutil.copytree(whole, root)
    staged.change_params(root, "machine.streaming", "auto")
    for memory, words in ((1e-6, "calibrate: block by block: whole it takes"), (1.0, "calibrate: whole model in")):
        staged.change_params(root, "machine.memory", memory)
        shutil.rmtree(root / "data" / ".work")
        before = staged.artifacts(root)
        calibrate.run(root)
        assert words in capsys.readouterr().err
        assert staged.artifacts(root) == before


class Killed(BaseException):
    """Stands for a kill between two blocks."""


def test_a_killed_calibration_goes_on_at_its_first_unfinished_block(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "killed"
    shutil.copytree(whole, root)
    staged.change_params(root, "machine.streaming", "always")
    shutil.rmtree(root / "data" / ".work")
    expected = staged.artifacts(root)
    shutil.rmtree(root / "data" / "activations" / "dense")
    written: list[list[str]] = []
    original: Any = vars(calibrate)["write_inputs"]

    def write(writer, collection, weight):
        written.append(sorted(collection.accumulators))
        if len(written) == 2:
            raise Killed
        original(writer, collection, weight)

    monkeypatch.setattr(calibrate, "write_inputs", write)
    with pytest.raises(Killed):
        calibrate.run(root)
    calibrate.run(root)
    assert [names[0].split(".")[2] for names in written] == ["0", "1", "1", "2"]
    assert staged.artifacts(root) == expected


def test_masks_and_metrics_are_made_again_in_parts(whole: Path, tmp_path: Path) -> None:
    """From the artifacts of a run in memory, each stage alone."""
    root = tmp_path / "again"
    shutil.copytree(whole, root)
    expected = staged.artifacts(root)
    staged.change_params(root, "machine.streaming", "always")
    shutil.rmtree(root / "data" / ".work")
    mask.run(staged.METHOD, staged.SPARSITY, root)
    evaluate.run(staged.METHOD, staged.SPARSITY, root=root)
    assert staged.artifacts(root) == expected
    assert tiny.read_params(root)["machine"]["streaming"] == "always"


def test_what_was_compared_is_let_go_before_layers_are_measured(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "parts"
    shutil.copytree(whole, root)
    staged.change_params(root, "machine.streaming", "always")
    shutil.rmtree(root / "data" / ".work")
    runners: list[StreamedRunner] = []
    left: list[set[str]] = []
    open_runner, measure_layers = (vars(evaluate)[name] for name in ("open_runner", "measure_layers"))

    def opening(*args: Any) -> Runner:
        runner = open_runner(*args)
        assert isinstance(runner, StreamedRunner)
        runners.append(runner)
        return runner

    def measuring(*args: Any) -> LayerFacts:
        for runner in runners:
            left.append(tiny.in_memory(runner.model) & {name for names in runner.units.values() for name in names})
        return measure_layers(*args)

    monkeypatch.setattr(evaluate, "open_runner", opening)
    monkeypatch.setattr(evaluate, "measure_layers", measuring)
    evaluate.run(staged.METHOD, staged.SPARSITY, root=root)
    assert left == [set(), set()]  # of the pruned and of the dense model
