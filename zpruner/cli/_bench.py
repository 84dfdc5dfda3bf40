"""`zpruner bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zpruner.cli import _options as option


def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Checkpoint folders, packed or not.")],
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens generated per run.")] = 32,
    prefill: Annotated[int, typer.Option(min=1, help="Tokens of the prompt that is computed at once.")] = 512,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of every row, in turns.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch and the kernels.  [default: torch's]")] = None,
    quantized: Annotated[bool, typer.Option(help="The first model as dense int8 and int4, too.")] = True,
    memory: Annotated[bool, typer.Option(help="Start a process per model to see what memory it takes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: every number, as JSON.")] = False,
    log: option.Log = None,
) -> None:
    """Measure sizes and speeds: packed models beside the same weights with their zeros, by torch and the same code."""
    import torch

    from zpruner.bench import Plan, markdown, row_count
    from zpruner.bench import bench as measure
    from zpruner.runtime.progress import counter

    if threads is not None:
        torch.set_num_threads(threads)
    plan = Plan(new_tokens=new_tokens, prefill=prefill, rounds=rounds, quantized=quantized)
    with counter("bench", (rounds + 1) * row_count(models, quantized), "run") as step:
        found = measure(models, plan, memory=memory, step=step)
    typer.echo(json.dumps(found.to_json(), indent=1) if as_json else markdown(found), nl=False)
