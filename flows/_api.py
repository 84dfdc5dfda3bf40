"""A Prefect API for one run, where no server is configured: on loopback, on SQLite, gone with the run.

Prefect would start such a server by itself, but only when it is first needed and after importing all of the server
into this process as well: a run of 5 small stages then took 27 to 38 s in place of 14 to 18. It also outlives a killed
run, and a run whose server was killed hung for more than 200 s. The database is the one of `prefect server start`,
which shows such runs afterwards.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from warm.client import die_with_parent
from zpruner.errors import ZprunerError

TIMEOUT_SECONDS = 300
SERVER = "flows._api"
RESTARTS = 3


class PrefectServerError(ZprunerError):
    """Prefect's own server did not come up."""


class TemporaryApi:
    """Prefect's server in a child process, which is started again if it dies: a run would wait minutes for it."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._lock = threading.Lock()
        self._closed = False
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
        }
        return subprocess.Popen(
            [sys.executable, "-m", SERVER, str(os.getpid()), str(self._port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run, which has its end to report
        )

    def _keep(self) -> None:
        for _ in range(RESTARTS):
            status = self._process.wait()
            with self._lock:
                if self._closed:
                    return
                print(f"Prefect's server ended (exit status {status}): starting it again", file=sys.stderr)
                self._process = self._start()

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            PrefectServerError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    self._keeper.start()
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        raise PrefectServerError(
            self.url,
            "no answer" if self._process.poll() is None else f"exit status {self._process.returncode}",
            "Prefect's server to answer",
            "See its output above. The versions of fastapi and sqlalchemy in pyproject.toml are known to work.",
        )

    def close(self) -> None:
        """Stop it."""
        with self._lock:
            self._closed = True
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def api() -> Iterator[TemporaryApi | None]:
    """Yield None where an API is configured (PREFECT_API_URL), else start a temporary one and make it Prefect's."""
    if PREFECT_API_URL.value():
        yield None
        return
    server = TemporaryApi()
    try:
        with temporary_settings({PREFECT_API_URL: server.url}):
            try:
                yield server
            finally:  # what Prefect sends from its own threads has to arrive first
                APILogWorker.drain_all(timeout=10)
                EventsWorker.drain_all(timeout=10)
    finally:
        server.close()


@contextmanager
def ready() -> Iterator[None]:
    """Have an API that answers: the one that is configured, or a temporary one.

    Raises:
        PrefectServerError: a temporary one did not come up.
    """
    with api() as server:
        if server is not None:
            server.wait()
        yield


class _Server(uvicorn.Server):
    """A server that makes the database, or brings it up to date, with no other one of this user's beside it."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, once whoever is starting has done so: two that make the same tables fail."""
        home = PREFECT_HOME.value()
        home.mkdir(parents=True, exist_ok=True)
        with (home / "zpruner-start.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            await super().startup(sockets)


def serve(owner: int, port: int) -> None:
    """Be the server, until the process `owner` dies or ends it."""
    die_with_parent()
    if os.getppid() != owner:
        return
    app = "prefect.server.api.server:create_app"
    config = uvicorn.Config(
        app, factory=True, port=port, log_level="error", lifespan="on", timeout_graceful_shutdown=2, host="127.0.0.1"
    )
    server = _Server(config)
    server.run()
    sys.exit(0 if server.started else 3)


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
