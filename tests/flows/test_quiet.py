"""A run of the flow speaks to this machine only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

WATCH = """
import json, os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[0]
    else:
        return
    with open(os.environ["WATCHED"], "a") as file:
        file.write(json.dumps([sys.argv, str(address)]) + "\\n")

sys.addaudithook(watch)
"""
LOCAL = ("127.0.0.1", "('127.0.0.1'", "localhost", "::1", "('::1'", "/", "b'/", "None")


@pytest.mark.slow
def test_nothing_is_sent_anywhere(tmp_path: Path) -> None:
    """Every Python process of a run notes whom it speaks to: flow, Prefect's server, workers, DVC, stages."""
    root = tiny.make_project(tmp_path / "p")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    switches = ("DO_NOT_TRACK", "DVC_NO_ANALYTICS", "HF_HUB_OFFLINE", "PREFECT_SERVER_ANALYTICS_ENABLED")
    environment = {name: value for name, value in tiny.environment().items() if name not in switches}
    environment |= {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(tiny.REPOSITORY)]),
        "WATCHED": str(tmp_path / "watched"),
        "HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "home" / "prefect"),
    }
    for command in (["flows.pipeline", "fetch"], ["warm", "dvc", "repro", "score@wanda"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    heard = [json.loads(line) for line in (tmp_path / "watched").read_text().splitlines()]
    assert any("127.0.0.1" in address for _, address in heard)  # Prefect's own server
    assert [entry for entry in heard if not entry[1].startswith(LOCAL)] == []
