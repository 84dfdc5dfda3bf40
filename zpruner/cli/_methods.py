"""`zpruner methods`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table


def methods() -> None:
    """List methods and the other parts of compositions with their hyper-parameters and papers."""
    import shutil
    import sys

    from rich.console import Console

    from zpruner.allocations import ALLOCATIONS
    from zpruner.corrections import CORRECTIONS
    from zpruner.masks import REFINEMENTS
    from zpruner.methods import METHODS
    from zpruner.pruning.presets import PRESETS
    from zpruner.quantization import ROUNDINGS
    from zpruner.rankings import RANKINGS
    from zpruner.tuning import TUNINGS
    from zpruner.updates import UPDATES

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size((100, 24)).columns if terminal else 160
    console = Console(width=width, highlight=False, force_terminal=terminal)
    console.print(_table("methods, scores and solvers (--method)", METHODS.all(), group=True))
    console.print(_table("mask refinements (--refine)", REFINEMENTS.all()))
    console.print(_table("weight updates (--update)", UPDATES.all()))
    console.print(_table("rankings of structures, beside every score (`structures` in params.yaml)", RANKINGS.all()))
    console.print(_table("allocations of sparsity over layers (`allocate` in params.yaml)", ALLOCATIONS.all()))
    console.print(_table("corrections for earlier pruned blocks (`correct` in params.yaml)", CORRECTIONS.all()))
    console.print(_table("tunings of pruned blocks (`tune` in params.yaml)", TUNINGS.all()))
    console.print(_table("roundings of what stays (`quantize: {rounding: NAME, ...}` in params.yaml)", ROUNDINGS.all()))
    typer.echo("Compositions with a name (--method NAME, or written out in params.yaml):")
    for name, preset in PRESETS.items():
        typer.echo(f"  {name}: {json.dumps(dict(preset))}")
    typer.echo(
        "Statistics: gram is collected where a listed method needs it (calibration.gram in params.yaml), so is grad_sq"
    )
    typer.echo("(of an expression: where its formula mentions G); the command line sees to both.")


def _table(title: str, entries: Iterable[tuple[str, type[Any]]], group: bool = False) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False
    )
    columns = ["name", "needs", *(["group"] if group else []), "hyper-parameters and defaults", "what it is"]
    for column in columns:
        table.add_column(column, overflow="fold")
    for name, found in entries:
        needs = sorted(stat.value for stat in found.needs)
        cells = [name, ", ".join(needs) or "nothing"]
        if group:
            cells.append(found.default_group.value)
        defaults = [f"{key}: {_default(field)}" for key, field in found.model_fields.items()]
        table.add_row(*(Text(cell) for cell in (*cells, ", ".join(defaults) or "none", summary(found))))
    return table


def summary(entry: type[Any]) -> str:
    """Return the first line of a part's file, which names the paper, or of its class."""
    import inspect

    module = inspect.getmodule(entry)
    text = (module.__doc__ if module is not None else None) or entry.__doc__ or ""
    return re.sub(r"\s+", " ", text.split("\n\n")[0]).strip()


def _default(field: Any) -> str:
    return "(required)" if field.is_required() else str(field.get_default(call_default_factory=True))
