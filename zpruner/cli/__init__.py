"""The command `zpruner`: one pruned model without a pipeline, and a look at what the pipeline made.

Every error is one sentence on standard error (see zpruner.runtime.command). Heavy libraries are imported by the command
that needs them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import zpruner
from zpruner.cli._advise import advise
from zpruner.cli._bench import bench
from zpruner.cli._doctor import doctor
from zpruner.cli._evaluate import evaluate
from zpruner.cli._export import export
from zpruner.cli._inspect import inspect
from zpruner.cli._kernels import kernels
from zpruner.cli._methods import methods
from zpruner.cli._pack import pack, unpack
from zpruner.cli._prune import prune
from zpruner.cli._validate import validate
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.runtime.command import run_command
from zpruner.settings.wording import OPTIONS

app = typer.Typer(
    name="zpruner",
    help="Prune large language models after training, without retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"zpruner {zpruner.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Prune large language models after training, without retraining."""


for command, short in (
    (prune, "Prune one model and write an ordinary checkpoint."),
    (evaluate, "Measure perplexity on a text, and scores on tasks."),
    (export, "Copy a variant of the pipeline, to publish it."),
    (advise, "Say which variant of the pipeline to ship."),
    (pack, "Write a checkpoint without its zeros."),
    (unpack, "Write the checkpoint that was packed, byte for byte."),
    (bench, "Measure sizes and speeds of packed models."),
    (kernels, "Tell what multiplies by packed weights here."),
    (inspect, "Check an artifact, and say what is in it."),
    (methods, "List methods, and the other parts of compositions."),
    (validate, "Check params.yaml, and estimate what it will take."),
    (doctor, "Verify every artifact of a project."),
):
    app.command(short_help=short)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 after an error of ours, 2 after wrong usage, 130 when interrupted."""
    keep_freed_memory()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its warning about forks is not for a user
    given = sys.argv[1:] if arguments is None else arguments
    wording = OPTIONS if given[:1] and given[0] in ("prune", "evaluate") else None  # the others read params.yaml
    run_command(app, given, interrupted="Interrupted.", wording=wording)
    sys.exit(0)
