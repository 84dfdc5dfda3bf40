"""Existing engines run the instances: Dask and Ray on this machine, and clusters whose workers have their own clones.

They need `pip install prefect-dask` and `pip install prefect-ray`, which are no dependencies of the project.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import remotes
import tiny
from toys import Toy, commit, lock, make_toy

from flows import share
from flows.runners import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ENGINES = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}: pip install"))
    for name, package in (("dask", "prefect_dask"), ("ray", "prefect_ray"))
]


def flow(root: Path, url: str, *arguments: str) -> str:
    """Run the flow from the command line; returns what it printed."""
    command = [sys.executable, "-m", "flows.pipeline", *arguments]
    variables = os.environ | {"PREFECT_API_URL": url, "PYTHONPATH": paths(root)}
    done = subprocess.run(
        command, cwd=root, env=tiny.environment() | variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def paths(root: Path) -> str:
    """Return a PYTHONPATH with the flows of this repository beside the stages of a toy project."""
    return os.pathsep.join([str(root), str(tiny.REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])


@pytest.mark.parametrize("engine", ENGINES)
def test_on_this_machine(engine: str, toy: Toy, api: str, tmp_path: Path) -> None:
    other = make_toy(tmp_path / "other")
    tiny.run(["dvc", "repro"], other.root)
    for label in toy.params["parts"]:
        toy.change("part", label, meet=2)  # none ends before two have begun
        other.change("part", label, meet=2)
    assert "5 ran, 0 restored" in flow(toy.root, api, "--runner", engine, "--parallel", "2")
    tiny.run(["dvc", "repro"], other.root)
    assert lock(toy.root) == lock(other.root)
    assert "0 ran, 0 restored from the cache, 5 unchanged" in flow(toy.root, api, "--runner", engine)


@contextmanager
def dask(clones: list[Path], folder: Path) -> Iterator[str]:
    """A Dask scheduler, and in every clone a worker."""
    [port, board] = remotes.free_ports(2)
    address = f"tcp://127.0.0.1:{port}"
    scheduler = ["dask", "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", f":{board}"]
    worker = ["dask", "worker", address, "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"]
    commands = [(scheduler, folder)] + [([*worker, "--local-directory", str(folder)], clone) for clone in clones]
    with ExitStack() as stack:
        for number, (command, root) in enumerate(commands):
            log = stack.enter_context((folder / f"dask-{number}.log").open("wb"))
            variables = tiny.environment() | {ROOT: str(root), "PYTHONPATH": paths(root)}
            command = [sys.executable, "-m", *command]
            process = subprocess.Popen(command, cwd=root, env=variables, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield address


@pytest.mark.parametrize("engine", ENGINES[:1])
def test_workers_with_clones_meet_in_the_remote(engine: str, toy: Toy, api: str, tmp_path: Path) -> None:
    share.add(toy.root, "team", str(tmp_path / "remote"))
    for label in toy.params["parts"]:
        toy.change("part", label, sleep=1)
    commit(toy.root)
    clones = [tmp_path / name for name in ("left", "right")]
    for clone in clones:
        tiny.run(["git", "clone", "-q", str(toy.root), str(clone)], tmp_path)
    with dask(clones, tmp_path) as address:
        flow(toy.root, api, "--share", "--runner", f"{engine}={address}")
    ran = [Toy(clone).runs() for clone in clones]
    assert all(ran)  # each had its share
    assert sorted(ran[0] + ran[1]) == ["base", "last", "part@p0", "part@p1", "part@p2"]  # nothing was done twice
    assert toy.runs() == []
    assert "up to date" in tiny.run(["dvc", "status"], toy.root).stdout
    assert (toy.root / "out" / "page" / "report.html").is_file()
    toy.change("last", value=2)
    with dask(clones, tmp_path) as address, pytest.raises(AssertionError, match="bring it to the same commit"):
        flow(toy.root, api, "--share", "--runner", f"{engine}={address}")
