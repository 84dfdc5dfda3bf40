"""The command `zpruner`: one pruned model without a pipeline, and a look at what the pipeline made.

Every error of ours is one sentence on standard error and exit code 1. Heavy libraries are imported by the command
that needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from zpruner.cli._evaluate import evaluate
from zpruner.cli._export import export
from zpruner.cli._inspect import inspect
from zpruner.cli._methods import methods
from zpruner.cli._prune import prune
from zpruner.cli._validate import validate
from zpruner.errors import InvalidSettingError, ZprunerError
from zpruner.runtime.allocator import keep_freed_memory

INTERRUPTED = 130
"""What typer returns after Ctrl-C instead of raising."""

app = typer.Typer(
    name="zpruner",
    help="Prune large language models after training, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (prune, evaluate, export, inspect, methods, validate):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 after an error of ours, 2 after wrong usage, 130 when interrupted."""
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks is not for a user
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        _require_text(given)
        code = app(args=given, standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
    except ZprunerError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(1)
    except OSError as error:  # a disk or permission that no command foresaw
        typer.secho(f"error: {error.filename or 'the system'}: {error.strerror or error}.", fg="red", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Interrupted; nothing was written.", err=True)
        sys.exit(INTERRUPTED)
    except typer._click.exceptions.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def _require_text(arguments: Sequence[str]) -> None:
    """Raise InvalidSettingError for bytes that are no UTF-8, which no output, params.yaml or model card can hold."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InvalidSettingError(
                "the command line", ascii(argument), "arguments in UTF-8", "Rename the file, or link to it."
            ) from None
