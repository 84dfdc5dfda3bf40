"""A stage as a command: what DVC sees when it is interrupted, and what a flow may ask of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

from stages._project import BATCH_DIVISOR, Project, main
from zpruner.errors import InvalidSettingError


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


@pytest.mark.parametrize(("divisor", "sizes"), [(None, (2, 2)), ("1", (2, 2)), ("2", (1, 1)), ("4", (1, 1))])
def test_a_stage_may_be_asked_to_work_in_smaller_batches(
    divisor: str | None, sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_params(tmp_path, tiny.PARAMS)
    monkeypatch.delenv(BATCH_DIVISOR, raising=False)
    if divisor is not None:
        monkeypatch.setenv(BATCH_DIVISOR, divisor)
    params = Project.open(tmp_path).params
    assert (params.calibration.batch_size, params.evaluation.perplexity.batch_size) == sizes
    assert params.calibration.nsamples == 6


@pytest.mark.parametrize("divisor", ["0", "-1", "1.5", "", "four"])
def test_a_divisor_that_is_none_is_refused(divisor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_params(tmp_path, tiny.PARAMS)
    monkeypatch.setenv(BATCH_DIVISOR, divisor)
    with pytest.raises(InvalidSettingError, match="a whole number above 0"):
        Project.open(tmp_path)
