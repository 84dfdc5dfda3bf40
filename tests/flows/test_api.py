"""The Prefect server of a single run."""

from __future__ import annotations

import os
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

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


def answering(url: str) -> int | None:
    """Return the process that answers."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return int(answer.read())
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
        os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while (now := answering(server.url)) in (victim, None):
            assert time.monotonic() < deadline
        victim = now
    assert capsys.readouterr().err.count("Prefect's server ended (exit status -9): starting it again") == 2
    server.close()
    assert answering(server.url) is None
    server._keeper.join(20)
    assert not server._keeper.is_alive()
