"""A stage as a command: what DVC sees when it is interrupted."""

from __future__ import annotations

import sys

import pytest

from stages._project import main


def test_an_interrupted_stage_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C that reaches the stage alone must not let DVC take a half-built artifact for a whole one."""

    def run() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["stage"])
    with pytest.raises(SystemExit) as exit_:
        main(run)
    assert exit_.value.code == 130
    assert "Finished parts are kept" in capsys.readouterr().err


def test_a_stage_that_ends_well_exits_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["stage"])
    main(lambda: None)
