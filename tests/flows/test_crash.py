"""Killing a run at random points: the next one finishes, with the same artifacts, and repeats nothing finished."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import psutil
import pytest
import tiny
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelling
from ruamel.yaml.error import YAMLError
from toys import Toy, lock, make_toy

DRIVER = """
import sys
from pathlib import Path
from flows import pipeline as module
from flows.slots import processor_slots
from flows.machine import early_worker
from warm.libraries import DVC
from warm.worker import Worker
module.machine_slots = lambda worker, root, parallel: dict.fromkeys((True, False), processor_slots(parallel, "toy"))
with Worker(Path.cwd(), DVC) as worker:
    early_worker.set(worker)
    module.pipeline(".", parallel=2)
"""
Start = Callable[..., subprocess.Popen[bytes]]
PATIENCE = 400.0
"""No claim, only an end to waiting: start-up alone took 100 s once, beside 10 busy processes on 2 cores."""
VICTIMS = {"flow": None, "worker": "warm._serve", "server": "flows._api"}


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a command whose output goes to a file; at the end none is left running."""
    started = []

    def popen(command: list[str], root: Path, log: Path, **variables: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=root, env=tiny.environment() | variables, stdout=out, stderr=out)
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def inside(root: Path) -> list[psutil.Process]:
    """Return every process that works in the project."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == root and process.pid != os.getpid():
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def kill(process: subprocess.Popen[bytes], victim: str, rng: random.Random) -> None:
    """Kill the flow's process, or one of those children of it that run a module."""
    module = VICTIMS[victim]
    if module is None:
        process.kill()
    elif found := [child for child in psutil.Process(process.pid).children() if module in child.cmdline()]:
        rng.choice(found).kill()


def artifacts(folder: Path, leave_out: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return every file but DVC's own notes, whose lines come in the order in which things ended."""
    return {name: data for name, data in tiny.files_of(folder, leave_out).items() if not name.endswith(".gitignore")}


class Locked:
    """Knows what has been in dvc.lock, which is empty or cut off while DVC writes it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: set[str] = set()

    def names(self) -> set[str]:
        """Return every instance that has been there."""
        with suppress(OSError, YAMLError, TypeError):
            self._names |= set(lock(self._root))
        return set(self._names)


def disturb(start: Start, toy: Toy, api: str, victim: str, seed: int, tmp_path: Path) -> None:
    """Start a run of a toy project, kill something at a random point, run again."""
    rng = random.Random(seed)
    for stage in ("base", "last"):
        toy.change(stage, sleep=0.2)
    for label in toy.params["parts"]:
        toy.change("part", label, sleep=0.2)
    command = [sys.executable, "-c", DRIVER]
    process = start(command, toy.root, tmp_path / "first.log", PREFECT_API_URL=api)
    locked = Locked(toy.root)
    entries = rng.randrange(10)
    wait_for(lambda: locked.names() is not None and (len(toy.journal()) >= entries or process.poll() is not None))
    pause = time.monotonic() + rng.random() * 0.3
    wait_for(lambda: locked.names() is not None and time.monotonic() > pause)
    kill(process, victim, rng)
    process.wait(PATIENCE)
    wait_for(lambda: not inside(toy.root))
    finished = locked.names()
    before = len(toy.journal())
    again = start(command, toy.root, tmp_path / "second.log", PREFECT_API_URL=api)
    assert again.wait(PATIENCE) == 0, (tmp_path / "second.log").read_text()
    repeated = {entry["name"] for entry in toy.journal()[before:]}
    assert not repeated & finished
    # What had ended, but was not in dvc.lock yet, came from the run cache and is in neither of the two.
    assert set(toy.runs()) == set(lock(toy.root)) == {"base", "part@p0", "part@p1", "part@p2", "last"}
    assert "up to date" in tiny.run(["dvc", "status"], toy.root).stdout


@pytest.mark.parametrize(("victim", "seed"), [("flow", 1), pytest.param("worker", 2, marks=pytest.mark.slow)])
def test_a_killed_run_is_finished_by_the_next(
    start: Start, toy: Toy, api: str, victim: str, seed: int, tmp_path: Path
) -> None:
    disturb(start, toy, api, victim, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_killed_anywhere(start: Start, api: str, seed: int, tmp_path: Path) -> None:
    toy, other = make_toy(tmp_path / "toy"), make_toy(tmp_path / "other")
    disturb(start, toy, api, ("flow", "worker")[seed % 2], 100 + seed, tmp_path)
    shutil.copy(toy.root / "params.yaml", other.root)
    tiny.run(["dvc", "repro"], other.root)
    assert lock(toy.root) == lock(other.root)
    assert artifacts(toy.root / "out") == artifacts(other.root / "out")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A real project of one variant in which nothing has run, and a copy after an undisturbed run."""
    folder = tmp_path_factory.mktemp("small")
    fresh = tiny.make_project(folder / "fresh")
    params = tiny.read_params(fresh)
    params |= {"methods": {"wanda": params["methods"]["wanda"]}, "sparsities": {"s24": "2:4"}}
    tiny.write_params(fresh, params)
    done = folder / "done"
    shutil.copytree(fresh, done, symlinks=True)
    tiny.run([sys.executable, "-m", "warm", "dvc", "repro"], done)
    return fresh, done


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(20))
def test_real_stages_killed_anywhere(
    start: Start, api: str, small: tuple[Path, Path], seed: int, tmp_path: Path
) -> None:
    victim = ("flow", "worker", "server")[seed % 3]
    variables = {} if victim == "server" else {"PREFECT_API_URL": api}  # without, each run has its own server
    fresh, done = small
    root = tmp_path / "p"
    shutil.copytree(fresh, root, symlinks=True)
    rng = random.Random(seed)
    command = [sys.executable, "-m", "flows.pipeline", "--parallel", "2"]
    process = start(command, root, tmp_path / "first.log", **variables)
    instances = rng.randrange(8)
    locked = Locked(root)
    wait_for(lambda: len(locked.names()) >= instances and (root / "data" / ".work").is_dir())
    pause = time.monotonic() + rng.random() * 2
    wait_for(lambda: locked.names() is not None and time.monotonic() > pause)
    kill(process, victim, rng)
    process.wait(PATIENCE)
    wait_for(lambda: not inside(root))
    finished = locked.names()
    second = tmp_path / "second.log"
    assert start(command, root, second, **variables).wait(PATIENCE) == 0, second.read_text()
    ran = {
        line.split("Running stage '")[1].split("'")[0] for line in second.read_text().splitlines() if "Running" in line
    }
    assert not ran & finished
    assert ran | finished <= set(lock(root)) == set(lock(done))
    timed = ("costs/", "report/", ".work", ".downloads")  # these hold durations
    assert artifacts(root / "data", timed) == artifacts(done / "data", timed)


def cancel() -> UUID:
    """Do what the button in Prefect's UI does to the run that began last; returns the run."""
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        client.set_flow_run_state(run.id, Cancelling())
    return run.id


@pytest.mark.parametrize(
    "how", [None, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_cancelled_run_stops_its_stage_and_resumes(
    start: Start, toy: Toy, api: str, how: signal.Signals | None, tmp_path: Path
) -> None:
    toy.change("part", "p1", sleep=100)
    command = [sys.executable, "-c", DRIVER]
    process = start(command, toy.root, tmp_path / "first.log", PREFECT_API_URL=api)
    wait_for(lambda: "part@p1" in toy.runs())
    if how is None:
        run = cancel()
    else:
        process.send_signal(how)
    assert process.wait(30) != 0
    wait_for(lambda: not inside(toy.root), 10)
    if run is not None:
        with get_client(sync_client=True) as client:
            assert client.read_flow_run(run).state_name == "Cancelled"
    toy.change("part", "p1", sleep=0)
    begun = Locked(toy.root).names()
    before = len(toy.runs())
    again = start(command, toy.root, tmp_path / "second.log", PREFECT_API_URL=api)
    assert again.wait(PATIENCE) == 0, (tmp_path / "second.log").read_text()
    assert not set(toy.runs()[before:]) & begun
