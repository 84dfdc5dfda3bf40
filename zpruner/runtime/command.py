"""How a command ends: an exit status, and one sentence on standard error where it fails."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer

from zpruner.errors import InvalidSettingError, ZprunerError, ZprunerWarning, one_line, without_credentials
from zpruner.runtime.transcript import Transcript

DEBUG = "ZPRUNER_DEBUG"
"""The environment variable that, set to anything but 0, shows the traceback of every failure."""
_INTERRUPTED = 130
"""What typer exits with after Ctrl-C."""
_ROOT = Path(__file__).parents[2]
_OURS = ("zpruner", "stages", "flows")
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


@dataclass
class Running:
    """A command that runs: the root context's `obj`, which its options may add to.

    Attributes:
        transcript: what it says; an option may begin to write it.
        interrupted: returns what is to be said after Ctrl-C, as things stand then.
    """

    transcript: Transcript
    interrupted: Callable[[], str]


def run_command(
    app: Callable[..., Any],
    arguments: Sequence[str],
    *,
    interrupted: str,
    wording: Mapping[str, str] | None = None,
) -> None:
    """Run a typer application; return where it ends well, else exit: 1 after an error, 2 after wrong usage, 130.

    An error of ours, of the system or of memory is one sentence; anything else is a bug, which says so and where to
    report it.

    Args:
        app: the application.
        arguments: of the command line, without the command.
        interrupted: what to say after Ctrl-C, unless an option knows more.
        wording: what the user calls the settings that errors speak of (see `ZprunerError.told`).
    """
    running = Running(Transcript([Path(sys.argv[0]).name, *arguments]), lambda: interrupted)
    status = 1
    try:
        status = _status(app, arguments, running, wording or {})
    finally:
        running.transcript.close(status)
    if status:
        sys.exit(status)


def _status(app: Callable[..., Any], arguments: Sequence[str], running: Running, wording: Mapping[str, str]) -> int:
    """Run the application and return its exit status, after the sentence that goes with it."""
    try:
        _require_text(arguments)
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show, warnings.showwarning)
            app(args=list(arguments), obj=running)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            typer.echo(running.interrupted(), err=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        typer.echo(running.interrupted(), err=True)
        return _INTERRUPTED
    except Exception as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            traceback.print_exc()
        typer.secho(f"error: {_sentence(error, wording)}", fg="red", err=True)
        return 1
    return 0


def _show(others: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Show what was decided for the user as one line, and other warnings as `others` does."""
    if issubclass(category, ZprunerWarning):
        typer.echo(f"note: {message}", err=True)
    else:
        others(message, category, *place)


def _sentence(error: Exception, wording: Mapping[str, str]) -> str:
    if isinstance(error, ZprunerError):
        return error.told(wording)
    first = without_credentials(one_line(str(error).strip().partition("\n")[0]))
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _MEMORY):
        return f"out of memory ({first or type(error).__name__}). Lower the batch size, or end what else is running."
    if isinstance(error, OSError) and error.strerror:  # a disk or permission that no command foresaw
        return f"{error.filename or 'the system'}: {error.strerror}."
    return (
        f"a bug, not something that you did: {type(error).__name__}: {first} ({_place(error)}). "
        f"Please report this line and the command in the project's issues; {DEBUG}=1 shows the traceback."
    )


def _place(error: Exception) -> str:
    """Return the last line of ours that an error passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    ours = [frame for frame in frames if any(Path(frame.filename).is_relative_to(_ROOT / name) for name in _OURS)]
    frame = (ours or frames)[-1]
    path = Path(frame.filename)
    return f"{path.relative_to(_ROOT).as_posix() if ours else path.name}, line {frame.lineno}"


def _require_text(arguments: Sequence[str]) -> None:
    """Raise InvalidSettingError for bytes that are no UTF-8, which no output, params.yaml or model card can hold."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InvalidSettingError(
                "the command line", ascii(argument), "arguments in UTF-8", "Rename the file, or link to it."
            ) from None
