"""Fixtures of the flows' tests: a Prefect API of their own, and small DVC projects without models."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny
from toys import Toy, make_toy

if TYPE_CHECKING:
    from warm.worker import Worker

# `tests/flows` must not be taken for a part of the package `flows`.
sys.path.insert(0, str(Path(__file__).parents[2]))

# Prefect reads it when it is imported; its database must not be the user's.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="zpruner-test-prefect-")
atexit.register(shutil.rmtree, os.environ["PREFECT_HOME"], ignore_errors=True)
os.environ["XDG_RUNTIME_DIR"] = os.environ["PREFECT_HOME"]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """A toy project in which nothing has run."""
    return make_toy(tmp_path / "toy")


@pytest.fixture(scope="session")
def api() -> Iterator[str]:
    """The URL of a Prefect API, made Prefect's own for the session."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows._api import TemporaryApi

    server = TemporaryApi()
    try:
        server.wait()
        with temporary_settings({PREFECT_API_URL: server.url}):
            yield server.url
            for service in (APILogWorker, EventsWorker):  # what is still to be sent needs the server
                service.drain_all(timeout=10)
    finally:
        server.close()


@pytest.fixture
def quick(api: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between retries, slots for a toy; artifacts only where a test takes `published`."""
    from flows import pipeline as module
    from flows.slots import processor_slots

    monkeypatch.setattr(module.instance, "retry_delay_seconds", [0.0, 0.0, 0.0])

    def slots(_worker: object, _root: object, parallel: int) -> dict[bool, Any]:
        return dict.fromkeys((True, False), processor_slots(parallel, "toy"))

    monkeypatch.setattr(module, "machine_slots", slots)
    if "published" not in request.fixturenames:
        monkeypatch.setattr(module, "publish", lambda *_: None)


@pytest.fixture
def published() -> None:
    """Ask for artifacts."""


@pytest.fixture(scope="session")
def dvc_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with DVC only: toy stages need no libraries."""
    from warm.libraries import DVC
    from warm.worker import Worker

    with Worker(tmp_path_factory.mktemp("worker"), DVC, tiny.environment()) as worker:
        yield worker


@pytest.fixture
def worker(dvc_worker: Worker) -> Iterator[None]:
    """The worker of the session in place of one per run."""
    from flows.machine import early_worker

    token = early_worker.set(dvc_worker)
    yield
    early_worker.reset(token)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let deprecated uses inside DVC and Prefect pass."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:prefect"))
