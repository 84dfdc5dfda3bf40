"""How commands end: every failure is one sentence, with an exit status."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
import typer

from zpruner.errors import InvalidSettingError
from zpruner.runtime.command import DEBUG, run_command
from zpruner.settings.wording import ARGUMENTS, OPTIONS

CUDA = "CUDA out of memory. Tried to allocate 2 GiB\nmore\nlines"


def fails(error: BaseException) -> Callable[[], None]:
    def run() -> None:
        raise error

    return run


def ended(run: Callable[..., None], *arguments: str, **options: Any) -> int:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(run)
    try:
        run_command(app, arguments, interrupted="Interrupted.", **options)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (InvalidSettingError("seqlen", "0", "1", "Raise it."), "error: seqlen: got 0, expected 1. Raise it.\n"),
        (OSError(errno.EACCES, "Permission denied", "/x"), "error: /x: Permission denied.\n"),
        (
            MemoryError(),
            "error: out of memory (MemoryError). Lower the batch size, or end what else is running.\n",
        ),
        (
            RuntimeError(CUDA),
            "error: out of memory (CUDA out of memory. Tried to allocate 2 GiB). ",
        ),
        (KeyError("x" * 500), "error: a bug, not something that you did: KeyError: "),
        (OSError("no errno"), "error: a bug, not something that you did: OSError: no errno (test_command.py, "),
        (RecursionError(), "error: a bug, not something that you did: RecursionError"),
    ],
)
def test_a_failure_is_one_line(error, said, capsys, monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    assert ended(fails(error)) == 1
    out, err = capsys.readouterr()
    assert err.startswith(said)
    assert (out, err.count("\n")) == ("", 1)
    assert len(err) < 450


def test_a_bug_says_where_it_is_and_where_to_report_it(capsys, monkeypatch):
    monkeypatch.delenv(DEBUG, raising=False)
    assert ended(fails(ValueError("token hf_abcdefghijklmnopqrstuvwx is secret"))) == 1
    err = capsys.readouterr().err
    assert "ValueError: token *** is secret (test_command.py, line " in err
    assert "report this line and the command in the project's issues" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ValueError("x"), InvalidSettingError("a", "b", "c", "d")])
def test_the_traceback_is_shown_on_demand(error, capsys, monkeypatch):
    monkeypatch.setenv(DEBUG, "1")
    assert ended(fails(error)) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert "in run" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_interrupted_wrong_and_well(capsys):
    assert ended(fails(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
    assert ended(lambda: None) == 0
    assert ended(lambda: None, "--nonsense") == 2
    assert "nonsense" in capsys.readouterr().err


def test_errors_speak_of_what_the_user_wrote(capsys):
    error = InvalidSettingError(
        "model.ignore",
        "'model.ignore'",
        "x",
        "List the layer under model.ignore in params.yaml, name it in params.yaml under model.blocks, not "
        "model.blocks.0. Set calibration.propagation to dense.",
    )
    assert ended(fails(error), wording=OPTIONS) == 1
    assert capsys.readouterr().err == (
        "error: --ignore: got 'model.ignore', expected x. List the layer under --ignore, name it under --blocks, not "
        "model.blocks.0. Leave out --propagation.\n"
    )
    assert str(error).endswith("Set calibration.propagation to dense.")
    error.wording = ARGUMENTS
    assert str(error).endswith("under `ignore`, name it under `blocks`, not model.blocks.0. Use calibrate and prune.")
