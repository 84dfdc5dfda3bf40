"""What DVC leaves half-written when it is killed stops no later run, and nothing that was finished runs again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import tiny
from dvc.exceptions import DvcException
from dvc.repo import Repo
from toys import Toy, lock, make_toy

from flows.graph import read_graph
from flows.pipeline import pipeline
from warm import mend as module


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A toy project in which everything has run."""
    toy = make_toy(tmp_path_factory.mktemp("mend") / "toy")
    tiny.run(["dvc", "repro"], toy.root)
    return toy


@pytest.fixture
def whole(done: Toy) -> Iterator[str]:
    """Its dvc.lock, put back at the end."""
    text = (done.root / "dvc.lock").read_text()
    yield text
    (done.root / "dvc.lock").write_text(text)
    (done.root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)


@pytest.mark.usefixtures("quick", "worker")
def test_a_kill_while_dvc_writes_its_lock_costs_nothing_finished(
    done: Toy, whole: str, capfd: pytest.CaptureFixture[str]
) -> None:
    before, finished = done.runs(), lock(done.root)
    (done.root / "dvc.lock").write_text("")
    assert "required key not provided" in tiny.run(["dvc", "status"], done.root, check=False).stderr
    assert pipeline(str(done.root)) == {"ran": 0, "restored from the cache": 5, "unchanged": 0}
    assert "dvc.lock was cut off" in capfd.readouterr().err
    assert done.runs() == before
    assert lock(done.root) == finished


@pytest.mark.usefixtures("whole")
def test_dvc_in_the_warm_worker_goes_on_as_well(done: Toy) -> None:
    before, finished = done.runs(), lock(done.root)
    (done.root / "dvc.lock").write_text("")
    result = tiny.run([sys.executable, "-m", "warm", "dvc", "repro"], done.root)
    assert "dvc.lock was cut off" in result.stderr
    assert done.runs() == before
    assert lock(done.root) == finished


@pytest.mark.parametrize(
    ("start", "end"),
    [("  part@p1:", "    deps:\n"), ("  part@p1:", "\n      m"), ("  last:", "  last:\n"), ("  base:", "\n")],
)
def test_a_lock_that_was_cut_off_keeps_its_whole_entries(done: Toy, whole: str, start: str, end: str) -> None:
    path = done.root / "dvc.lock"
    at = whole.index(start)
    path.write_text(whole[: whole.index(end, at) + len(end)])
    with pytest.raises(DvcException, match=r"dvc\.lock"), Repo(str(done.root)) as repo:
        repo.index  # noqa: B018 - reads it
    assert len(read_graph(done.root)) == 5
    kept = whole[:at] if start != "  base:" else None
    assert (path.read_text() if path.exists() else None) == kept


@pytest.mark.parametrize("text", ["<<<<<<< ours\n{}", "{}\n=======\n", "{0}  last:\n    cmd: {{\n{0}"])
def test_a_lock_that_is_wrong_otherwise_is_left_alone(done: Toy, whole: str, text: str) -> None:
    wrong = text.format(whole)
    (done.root / "dvc.lock").write_text(wrong)
    with pytest.raises(DvcException, match=r"dvc\.lock"):
        read_graph(done.root)
    assert (done.root / "dvc.lock").read_text() == wrong


def holders(root: Path, pid: int, kind: str) -> None:
    """Have DVC's list say that a process of that id is at work on an output of `base`."""
    entry = {"pid": pid, "cmd": "dvc repro"}
    at = str(root / "out" / "base.txt")
    listed = {"write": {at: entry}} if kind == "write" else {"read": {at: [entry, {**entry, "pid": os.getpid()}]}}
    (root / ".dvc" / "tmp" / "rwlock").write_text(json.dumps(listed))


@pytest.mark.parametrize("kind", ["write", "read"])
def test_who_is_at_work_is_forgotten_once_dead(
    done: Toy, whole: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = done.root / ".dvc" / "tmp" / "rwlock"
    holders(done.root, os.getppid(), kind)
    written = path.stat().st_mtime
    mine = psutil.Process().create_time()

    def listed() -> set[int]:
        with Repo(str(done.root)) as repo:
            module.forget_dead(repo)
        found = json.loads(path.read_text())
        return {one["pid"] for one in found.get("write", {}).values()} | {
            one["pid"] for readers in found.get("read", {}).values() for one in readers
        }

    others = {os.getpid()} if kind == "read" else set()
    assert listed() == {os.getppid()} | others
    began = {os.getppid(): written + 10, os.getpid(): mine}

    def process(pid: int) -> SimpleNamespace:
        return SimpleNamespace(status=lambda: psutil.STATUS_RUNNING, create_time=lambda: began[pid])

    monkeypatch.setattr(psutil, "Process", process)  # its id was given to another one since
    assert listed() == others


def test_a_zombie_holds_nothing(done: Toy, whole: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still to be collected
    holders(done.root, child.pid, "write")
    failed = tiny.run(["dvc", "repro", "-s", "-f", "base"], done.root, check=False)
    assert "it is being blocked by" in failed.stderr
    module.mend(done.root)
    assert "Running stage 'base'" in tiny.run(["dvc", "repro", "-s", "-f", "base"], done.root).stdout
    child.wait()


def test_a_list_that_was_cut_off_stops_nothing(done: Toy, whole: str) -> None:
    path = done.root / ".dvc" / "tmp" / "rwlock"
    path.write_text('{"write": {"')
    assert "corrupted" in tiny.run(["dvc", "repro", "-s", "-f", "base"], done.root, check=False).stderr
    module.mend(done.root)
    tiny.run(["dvc", "repro", "-s", "-f", "base"], done.root)
