"""A real Prefect server and process workers: a schedule fires, a run is cancelled, two clones share the work."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from ruamel.yaml import YAML
from toys import Toy, commit

from flows import share
from flows.nightly import BASELINE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def wait_for(condition: Callable[[], Any], seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
    return found


class Site:
    """A Prefect server with its home, and process workers in project folders."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = tiny.environment() | {
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PYTHONPATH": str(tiny.REPOSITORY),
        }
        self.home = home
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, root: Path, log: str, *arguments: str) -> None:
        environment = self.environment | {"ZPRUNER_ROOT": str(root)}
        with (self.home / log).open("wb") as out:
            command = [sys.executable, "-m", *arguments]
            self.processes.append(subprocess.Popen(command, cwd=root, env=environment, stdout=out, stderr=out))

    def prefect(self, root: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(command, cwd=root, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def runs(self, flow: str) -> list[FlowRun]:
        with get_client(sync_client=True) as client:
            return [run for run in client.read_flow_runs() if f"{flow}" in run.name]

    def finished_night(self) -> FlowRun | None:
        """Return a night that ran; the next one is cancelled when its time comes before this one has ended."""
        nights = [run for run in self.runs("nightly on") if run.state and run.state.is_final()]
        return next((run for run in nights if run.state_name != "Cancelled"), None)

    def state(self, run: Any) -> str:
        with get_client(sync_client=True) as client:
            return str(client.read_flow_run(run.id).state_name)

    def close(self) -> None:
        for process in self.processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "home").mkdir()
    site = Site(tmp_path / "home")
    site.start(tmp_path, "server.log", "prefect", "server", "start", "--port", str(site.port))
    try:
        wait_for(site.answers)
        with temporary_settings({PREFECT_API_URL: site.url}):
            yield site
    finally:
        site.close()


def deploy(site: Site, toy: Toy, seconds: int | None) -> None:
    """Deploy what prefect.yaml says, with a schedule for the impatient and without refreshing."""
    yaml = YAML(typ="safe")
    settings = yaml.load(tiny.REPOSITORY / "prefect.yaml")
    settings["deployments"] = [one for one in settings["deployments"] if one["name"] in ("nightly", "grid")]
    nightly, grid = settings["deployments"]
    nightly["parameters"] |= {"refresh": ["base"]}
    nightly["schedules"] = [{"interval": seconds}] if seconds else []
    grid["parameters"] |= {"share": False}
    shutil.copytree(tiny.REPOSITORY / "flows", toy.root / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    with (toy.root / "prefect.yaml").open("w", encoding="utf-8") as file:
        yaml.dump(settings, file)
    site.prefect(toy.root, "work-pool", "create", "zpruner", "--type", "process")
    site.prefect(toy.root, "deploy", "--all")


def test_a_schedule_fires_and_a_run_is_cancelled_and_resumed(site: Site, toy: Toy, tmp_path: Path) -> None:
    deploy(site, toy, 15)
    share.add(toy.root, "team", str(tmp_path / "remote"))
    worker = ("prefect", "worker", "start", "--pool", "zpruner", "--type", "process")
    site.start(toy.root, "worker.log", *worker)
    run = wait_for(site.finished_night)
    assert run.state_name == "Completed"
    assert run.auto_scheduled
    assert "last" in toy.runs()
    assert len(list((tmp_path / "remote" / "files").rglob("??/*"))) >= 5  # pushed
    site.prefect(toy.root, "deployment", "schedule", "clear", "nightly/nightly", "--accept-yes")
    wait_for(lambda: all(one.state and one.state.is_final() for one in site.runs("")))  # one night at a time

    toy.change("part", "p0", value=12345)
    worse = run_deployment("nightly/nightly", timeout=400)
    assert worse.state_name == "Failed"
    assert "a higher perplexity for last (51 -> 55)" in str(worse.state and worse.state.message)

    toy.change("part", "p1", value=5, sleep=300)
    cancelled = run_deployment("pipeline/grid", parameters={"share": False}, timeout=0)
    wait_for(lambda: toy.runs()[-1] == "part@p1")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(cancelled.id, Cancelling(), force=True)
    wait_for(lambda: site.state(cancelled) == "Cancelled", 200)
    stages = [
        line for line in tiny.run(["ps", "-e", "-o", "args"], toy.root).stdout.splitlines() if "stages.work" in line
    ]
    assert stages == []
    toy.change("part", "p1", sleep=0)
    resumed = run_deployment("pipeline/grid", parameters={"share": False}, timeout=400)
    assert resumed.state_name == "Completed"
    assert toy.runs()[-2:] == ["part@p1", "last"]


def test_a_schedule_without_a_work_pool(site: Site, toy: Toy) -> None:
    site.start(toy.root, "served.log", "flows.nightly", "--refresh", "base", "--cron", "* * * * *")
    run = wait_for(site.finished_night)
    assert run.state_name == "Completed"
    assert run.auto_scheduled
    assert toy.runs()[-1] == "last"
    assert (toy.root / BASELINE).is_file()


def test_two_workers_in_two_clones_meet_in_the_remote(site: Site, toy: Toy, tmp_path: Path) -> None:
    deploy(site, toy, None)
    share.add(toy.root, "team", str(tmp_path / "remote"))
    commit(toy.root)
    clones = []
    for name in ("left", "right"):
        tiny.run(["git", "clone", "-q", str(toy.root), str(tmp_path / name)], tmp_path)
        clones.append(Toy(tmp_path / name))
        site.start(clones[-1].root, f"{name}.log", "prefect", "worker", "start", "--pool", "zpruner", "--limit", "1")
    for targets in (["part@p0"], ["part@p1"]), (["last"],):
        runs = [
            run_deployment("pipeline/grid", parameters={"targets": one, "share": True}, timeout=0) for one in targets
        ]
        wait_for(lambda runs=runs: all(site.state(run) in ("Completed", "Failed", "Crashed") for run in runs))
        assert [site.state(run) for run in runs] == ["Completed"] * len(runs)
    ran = [name for clone in clones for name in clone.runs()]
    assert all(clone.runs() for clone in clones)
    assert {name: ran.count(name) for name in ("part@p0", "part@p1", "part@p2", "last")} == dict.fromkeys(
        ("part@p0", "part@p1", "part@p2", "last"), 1
    )
