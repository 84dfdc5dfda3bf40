"""The flow on toy stages: order, parallel runs, retries, cached instances, what is to be seen in Prefect."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import tiny
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.worker import EventsWorker
from toys import Toy, lock, make_toy

from flows import pipeline as module
from flows._api import PrefectServerError
from flows._ending import NotDoneError
from zpruner.errors import InvalidSettingError, UnknownNameError

NAMES = {"base", "part@p0", "part@p1", "part@p2", "last"}


pytestmark = pytest.mark.usefixtures("quick", "worker")


def flow(toy: Toy, **options: Any) -> dict[str, int]:
    return module.pipeline(str(toy.root), **options)


def latest(toy: Toy) -> tuple[FlowRun, dict[str, TaskRun], dict[str, Any]]:
    """Return the last run in the API: the flow's, its tasks' by name, and its artifacts' data by key."""
    EventsWorker.drain_all(timeout=10)
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[runs[0].id]))
        for _ in range(100):  # task runs are recorded from events, a little later
            tasks = {task.name: task for task in client.read_task_runs(flow_run_filter=chosen)}
            if len(tasks) >= len(toy.params["parts"]) + 2 and all(
                t.state and t.state.is_final() for t in tasks.values()
            ):
                break
            tiny.run(["sleep", "0.1"], toy.root)
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=_of(runs[0].id)))
    return runs[0], tasks, {str(artifact.key): artifact.data for artifact in artifacts}


def _of(run: UUID) -> ArtifactFilterFlowRunId:
    return ArtifactFilterFlowRunId(any_=[run])


def test_a_run_does_what_dvc_repro_does_and_shows_it(toy: Toy, published: None, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other")
    tiny.run(["dvc", "repro"], other.root)
    assert flow(toy, parallel=3) == {"ran": 5, "restored from the cache": 0, "unchanged": 0}
    assert lock(toy.root) == lock(other.root)
    assert sorted(toy.runs()) == sorted(NAMES)
    run, tasks, artifacts = latest(toy)
    assert run.name == "p0, p1, p2 on toy-1b"
    assert {"model:toy-1b", "method:p0", "method:p2"} <= set(run.tags)
    assert set(tasks) == NAMES
    assert set(tasks["part@p2"].tags) == {"model:toy-1b", "stage:part", "method:p2"}
    assert {task.state_name for task in tasks.values()} == {"Completed"}
    [row] = json.loads(artifacts["results"])
    assert row["variant"] == "last"
    assert row["perplexity"] == 51.0
    assert artifacts["report"].startswith("# part@p0 1\n")
    assert "\n![Lengths](data:image/png;base64," in artifacts["report"]

    assert flow(toy) == {"ran": 0, "restored from the cache": 0, "unchanged": 5}
    tasks = latest(toy)[1]
    assert {task.state_name for task in tasks.values()} == {"Cached"}
    assert "method:p1" in tasks["part@p1"].tags
    assert len(toy.runs()) == 5


def test_output_goes_to_the_log(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        flow(toy, targets=["part@p1"])
    lines = [record.getMessage() for record in caplog.records if record.name == "prefect.task_runs"]
    assert "a line of part@p1" in lines
    assert "Running stage 'base':" in lines
    assert not [line for line in lines if "git add" in line]
    assert set(toy.runs()) == {"base", "part@p1"}


def test_only_what_changed_runs_and_old_results_come_back(toy: Toy) -> None:
    flow(toy, parallel=2)
    toy.change("part", "p1", value=2)
    assert flow(toy)["ran"] == 2
    assert toy.runs()[5:] == ["part@p1", "last"]
    toy.change("part", "p1", value=1)
    assert flow(toy) == {"ran": 0, "restored from the cache": 2, "unchanged": 3}
    toy.change("base", value=1, sleep=0.01)  # the same bytes come out: what is below stays
    assert flow(toy) == {"ran": 1, "restored from the cache": 0, "unchanged": 4}
    assert latest(toy)[1]["last"].state_name == "Cached"
    assert flow(toy, force=["part@p0"])["ran"] == 1


def test_many_at_once_again_and_again(toy: Toy) -> None:
    for value in (1, 2):
        for label in ("p0", "p1", "p2"):  # none of them ends before all have begun
            toy.change("part", label, value=value, meet=3 * value)
        assert flow(toy, parallel=3)["ran"] >= 4
    assert "up to date" in tiny.run(["dvc", "status"], toy.root).stdout
    before = len(toy.runs())
    shutil.rmtree(toy.root / "out")
    tiny.run(["dvc", "checkout"], toy.root)  # the cache is whole
    tiny.run(["dvc", "repro"], toy.root)
    assert len(toy.runs()) == before


@pytest.mark.slow
def test_one_at_a_time_unless_asked(toy: Toy) -> None:
    for label in toy.params["parts"]:
        toy.change("part", label, sleep=0.1)
    flow(toy)
    whats = [entry["what"] for entry in toy.journal()]
    assert whats == ["start", "end"] * 5


def test_bad_input_is_not_tried_again_and_the_rest_is_done(toy: Toy, caplog: pytest.LogCaptureFixture) -> None:
    toy.change("part", "p1", fail="error: params.yaml: got 3, expected 4. Change it.")
    with (
        caplog.at_level("INFO"),
        pytest.raises(NotDoneError, match=r"2 of 5 stage instances not done: part@p1 failed\..*got 3, expected 4"),
    ):
        flow(toy, parallel=2)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("prefect.")]
    assert sum("got 3, expected 4" in line for line in said) == 1  # its sentence once
    assert not any("Traceback" in line for line in said)
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
    assert run.state is not None
    assert (run.state.name, run.state.message) == ("Failed", "2 of 5 stage instances not done: part@p1 failed.")
    assert toy.runs().count("part@p1") == 1
    assert {"part@p0", "part@p2"} <= set(toy.runs())
    assert "last" not in toy.runs()
    toy.change("part", "p1", fail="", times=0)
    assert flow(toy)["ran"] == 2


def test_what_can_pass_is_tried_again(toy: Toy) -> None:
    toy.change("part", "p1", fail="ConnectionError: connection reset by peer", times=2)
    assert flow(toy, targets=["part@p1"])["ran"] == 2
    assert toy.runs() == ["base", "part@p1", "part@p1", "part@p1"]


def test_out_of_memory_is_tried_once_more_alone_and_in_smaller_batches(toy: Toy) -> None:
    toy.change("part", "p1", fail="RuntimeError: can't allocate memory", times=1)
    for label in ("p0", "p2"):
        toy.change("part", label, sleep=0.3)
    flow(toy, parallel=4)
    entries = toy.journal()
    again = [i for i, entry in enumerate(entries) if entry["name"] == "part@p1"][1:]
    assert [entries[i]["what"] for i in again] == ["start", "end"]
    assert again[1] == again[0] + 1  # nothing started or ended meanwhile
    assert [entry["divisor"] for entry in entries if entry["divisor"] is not None] == ["4", "4"]
    assert entries[again[0]]["divisor"] == "4"


def test_unknown_targets_and_numbers(toy: Toy) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'part'"):
        flow(toy, targets=["prat"])
    with pytest.raises(InvalidSettingError, match="parallel: got -1"):
        flow(toy, parallel=-1)
    assert toy.runs() == []


def test_nothing_to_do_waits_for_no_server(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Server:
        def wait(self) -> None:
            raise PrefectServerError("here", "a wait", "none", "Do not.")

    monkeypatch.setattr(module, "api", lambda: nullcontext(Server()))
    monkeypatch.chdir(toy.root)
    tiny.run(["dvc", "repro", "part@p1"], toy.root)
    assert module.main(["part@p1"]) == 0
    assert capsys.readouterr().out == "0 ran, 0 restored from the cache, 2 unchanged\n"
    assert module.main([]) == 1  # the others have not run
    assert "error: here: got a wait" in capsys.readouterr().err
