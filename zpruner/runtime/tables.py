"""Small tables: text for a terminal, HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def text_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return rows under their titles in columns: the first to the left, the others, numbers, to the right."""
    lines = [tuple(titles), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(caption: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the same as an HTML table with a caption; everything is escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        sides = ("left", *["right"] * (len(cells) - 1))
        pairs = zip(cells, sides, strict=True)
        found = [f'<{tag} style="text-align:{side}">{escape(cell)}</{tag}>' for cell, side in pairs]
        return f"<tr>{''.join(found)}</tr>"

    head, body = line(titles, "th"), "".join(line(row, "td") for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"
