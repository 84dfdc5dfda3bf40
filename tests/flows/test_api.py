"""The Prefect server of a single run."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import uvicorn
from prefect.settings import PREFECT_HOME, temporary_settings

from flows import _api as module

FAKE = """
import http.server, os, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[2])), Health).serve_forever()
"""


def answering(url: str, path: str = "health") -> str | None:
    """Return the answer: of a fake server, its process."""
    try:
        with urllib.request.urlopen(f"{url}/{path}", timeout=5) as answer:
            return str(answer.read().decode())
    except (urllib.error.URLError, OSError):
        return None


def test_a_server_that_dies_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "server_of_a_test.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(module, "SERVER", "server_of_a_test")
    server = module.TemporaryApi()
    server.wait()
    victim = answering(server.url)
    for _ in range(2):
        assert victim is not None
        os.kill(int(victim), signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (now := answering(server.url)) in (victim, None):
            assert time.monotonic() < deadline
        victim = now
    assert capsys.readouterr().err.count("Prefect's server ended (exit status -9): starting it again") == 2
    server.close()
    assert answering(server.url) is None
    server._keeper.join(20)
    assert not server._keeper.is_alive()


@pytest.mark.slow
def test_two_on_a_fresh_database_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each would make the tables, and the second find them there."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    servers = [module.TemporaryApi() for _ in range(3)]
    try:
        for server in servers:
            server.wait()
        assert all(answering(server.url, "version") for server in servers)
    finally:
        for server in servers:
            server.close()
    assert capfd.readouterr().err == ""
    assert (tmp_path / "home" / "prefect.db").is_file()


def test_who_starts_a_server_waits_for_who_is_starting_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    async def startup(self: object, sockets: object = None) -> None:
        events.append("begun")
        with (tmp_path / "zpruner-start.lock").open("a") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        events.append("held")

    monkeypatch.setattr(uvicorn.Server, "startup", startup)
    server = module._Server(uvicorn.Config("x:y"))
    with temporary_settings({PREFECT_HOME: tmp_path}):
        asyncio.run(server.startup())
    assert events == ["begun", "held"]
    with (tmp_path / "zpruner-start.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
