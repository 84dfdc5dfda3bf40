"""The result table for a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zpruner.report import _format as fmt
from zpruner.report._summary import Row, summarise
from zpruner.report.data import ReportData


def render_table(data: ReportData, *, width: int | None = None, color: bool | None = None) -> str:
    """Return the table as text: dense, then every variant, the best of each sparsity marked with `*`.

    Args:
        data: what to show.
        width: columns; those of the terminal (80 where there is none) unless given. From 60 on nothing is cut.
        color: escape codes and box lines; as a terminal on stdout allows (and `NO_COLOR` does not forbid) unless given.
    """
    plain = not (sys.stdout.isatty() and "NO_COLOR" not in os.environ) if color is None else not color
    summary = summarise(data)
    table = Table(
        box=ASCII if plain else SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold"
    )
    table.add_column("method", overflow="fold")
    table.add_column("pattern", overflow="fold")
    for title in ("sparsity", "perplexity", "change", "layer error", "seconds"):
        table.add_column(title, justify="right", no_wrap=title not in ("layer error",))
    sequential = len({row.spec.propagation for row in summary.rows if row.spec}) > 1
    table.add_row(*_cells(summary.dense, sequential))
    previous = None
    for row in summary.rows:
        method = row.spec.method if row.spec else None
        if method != previous and not plain:
            table.add_section()
        previous = method
        table.add_row(*_cells(row, sequential), style="green" if row.best else None)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width or shutil.get_terminal_size((80, 24)).columns,
        force_terminal=not plain,
        no_color=plain,
        color_system=None if plain else "standard",
        legacy_windows=False,
        highlight=False,
    )
    console.print(table)
    if any(row.best for row in summary.rows):
        console.print(Text("* lowest perplexity of its sparsity", style="dim"))
    return out.getvalue()


def _cells(row: Row, sequential: bool) -> tuple[Text, ...]:
    metrics, spec = row.evaluation.metrics, row.spec
    method = "dense" if spec is None else spec.method
    if spec is not None and sequential:
        method += f" ({spec.propagation})"
    perplexity = fmt.perplexity(metrics.perplexity) + ("*" if row.best else " ")
    texts = (
        method,
        "-" if spec is None else f"{spec.sparsity} {spec.pattern_text}",
        fmt.percent(metrics.sparsity),
        perplexity,
        fmt.change(row.ratio),
        "-" if spec is None else fmt.error(metrics.layer_error),
        "-" if row.seconds is None else fmt.seconds(row.seconds),
    )
    return tuple(Text(text) for text in texts)
