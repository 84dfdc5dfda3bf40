"""Every file that a stage opens is verified: a byte of it altered, and the stage ends with one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from opened import opened
from trials import INSTANCES, PROJECTS, READING, make, runs, untimed

from zpruner.errors import ZprunerError

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked through inotify")


@pytest.fixture(scope="session", params=PROJECTS)
def complete(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A project after every stage."""
    return request.param, make(tmp_path_factory.mktemp("opened") / "project", request.param)


@pytest.mark.parametrize("complete", ["propagated"], indirect=True)
def test_a_file_of_each_kind_that_a_stage_opens_is_verified(complete: tuple[str, Path], tmp_path: Path) -> None:
    assert verified(*complete, tmp_path / "project", every=False) > 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("complete", PROJECTS, indirect=True)
def test_every_file_that_a_stage_opens_is_verified(complete: tuple[str, Path], tmp_path: Path) -> None:
    assert verified(*complete, tmp_path / "project", every=True) > 100


def verified(kind: str, finished: Path, root: Path, *, every: bool) -> int:
    """Alter each file that a stage opens, or one of each folder and suffix; returns how many were."""
    shutil.copytree(finished, root)
    tried = 0
    for name in READING:
        if not runs(kind, name):
            continue
        with opened(root / "data") as files:
            INSTANCES[name](root)
        shutil.rmtree(root / "data" / ".work", ignore_errors=True)
        chosen = files if every else {(path.parent, path.suffix): path for path in sorted(files)}.values()
        for path in chosen:
            refused(root, INSTANCES[name], path)
            tried += 1
    return tried


def refused(root: Path, instance: Callable[[Path], None], path: Path) -> None:
    """Alter a byte in the middle of a file, and run a stage: one sentence that names the file, and no artifact changes.

    A stage that uses nothing of the file but its header ends as if nothing had happened.
    """
    before = untimed(root)
    good = path.read_bytes()
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    try:
        instance(root)
    except ZprunerError as error:
        assert path.name in str(error), str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    path.write_bytes(good)
    assert untimed(root) == before, path
    shutil.rmtree(root / "data" / ".work", ignore_errors=True)


def damaged(folder: Path, count: int) -> dict[str, dict[str, int]]:
    """Run the damage driver in its own process."""
    environment = tiny.environment() | {"PYTHONPATH": f"{HERE.parent}:{HERE}:{tiny.REPOSITORY}"}
    command = [sys.executable, str(HERE / "damage_driver.py"), str(folder), str(count)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert sum(found["outcomes"].values()) == count
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_damages(tmp_path: Path) -> None:
    found = damaged(tmp_path, 1000)
    assert found["outcomes"]["refused"] > 700
