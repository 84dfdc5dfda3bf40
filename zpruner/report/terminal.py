"""Tables for a terminal."""

from __future__ import annotations

import io
import os
import shutil
import sys

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from zpruner.report import table as report
from zpruner.report.data import ReportData
from zpruner.report.figures import results
from zpruner.report.ranking import Report


def render_table(data: ReportData, *, width: int | None = None, color: bool | None = None) -> str:
    """Return the results as text: dense, then every variant, the best of each sparsity marked with `*`.

    Args:
        data: what to show.
        width: columns; those of the terminal (80 where there is none) unless given. From 60 on nothing is cut, and
            where all columns fit, all are shown.
        color: escape codes and box lines; as a terminal on stdout allows (and `NO_COLOR` does not forbid) unless given.
    """
    return render(results.table(Report.of(data)), "lowest perplexity of its sparsity", width=width, color=color)


def render(found: report.Table, mark: str, *, width: int | None = None, color: bool | None = None) -> str:
    """Return a table as text, marked cells with `*`.

    Args:
        found: the table.
        mark: what the asterisk says.
        width: as in `render_table`.
        color: as in `render_table`.
    """
    plain = not (sys.stdout.isatty() and "NO_COLOR" not in os.environ) if color is None else not color
    width = width or shutil.get_terminal_size((80, 24)).columns
    kept = [i for i, column in enumerate(found.columns) if _fits(found, width) or not column.wide_only]
    table = Table(
        box=ASCII if plain else SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="bold"
    )
    for i in kept:
        numeric = found.columns[i].numeric
        table.add_column(found.columns[i].title, justify="right" if numeric else "left", overflow="fold")
    previous = None
    for row in found.rows:
        cells = row.each()
        if cells[0].text != previous and not plain:
            table.add_section()
        previous = cells[0].text
        # Where some are marked, all make room for the mark: the digits of a column stay below each other.
        marks = {i: "*" if cells[i].mark else " " for i in kept if any(other.each()[i].mark for other in found.rows)}
        texts = (Text((cells[i].text or "-") + marks.get(i, "")) for i in kept)
        table.add_row(*texts, style="green" if row.css == "best" else None)
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=not plain,
        no_color=plain,
        color_system=None if plain else "standard",
        legacy_windows=False,
        highlight=False,
    )
    console.print(table)
    if any(cell.mark for row in found.rows for cell in row.each()):
        console.print(Text(f"* {mark}", style="dim"))
    return out.getvalue()


def _fits(found: report.Table, width: int) -> bool:
    """Return whether all columns have room, with their marks and what stands between them."""
    rows = [row.each() for row in found.rows]
    widths = [max(len(c.title), *(len(row[i].text) + 1 for row in rows)) for i, c in enumerate(found.columns)]
    return sum(widths) + 3 * (len(widths) - 1) <= width
