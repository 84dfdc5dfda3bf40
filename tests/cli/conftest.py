"""The command, run in this process, and a place with a tiny project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from zpruner.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.make_sources(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
