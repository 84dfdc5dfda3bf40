"""A table, said once: HTML on the page, Markdown, and text in a terminal."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import Markup

from zpruner.report import format as fmt

NOTHING = Markup()


@dataclass(frozen=True)
class Column:
    """A column; numbers are aligned to the right and typeset.

    Attributes:
        title: above it.
        numeric: whether it holds numbers.
        css: class of its cells on the page.
        wide_only: left out where room is scarce, as in a terminal.
    """

    title: str
    numeric: bool = False
    css: str = ""
    wide_only: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        text: what it says.
        key: what it is sorted by, where that is not its text.
        before: put in front of the text on the page, such as a swatch.
        mark: a word that stands beside the text everywhere, such as `best`.
        code: whether the text is code.
        link: where it leads.
        css: class of this cell on the page.
    """

    text: str = ""
    key: float | None = None
    before: Markup = NOTHING
    mark: str = ""
    code: bool = False
    link: str = ""
    css: str = ""


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        cells: one per column; a string is a cell that says it.
        css: class on the page.
        filters: name -> value, to filter by.
        fixed: whether it stays on top whatever the table is sorted by.
    """

    cells: tuple[Cell | str, ...]
    css: str = ""
    filters: Mapping[str, str] = field(default_factory=dict)
    fixed: bool = False

    def each(self) -> tuple[Cell, ...]:
        """Return the cells."""
        return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """Rows below columns; the first column names the row.

    Attributes:
        name: what the table shows, for assistive software.
        css: class on the page; `sorted` tables are sorted by a click on a heading.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    css: str = ""

    def html(self) -> Markup:
        """Return the table in a region that scrolls sideways where it is too wide."""
        heads = Markup().join(
            Markup('<th scope="col"{}>{}</th>').format(_css("n" if c.numeric else ""), fmt.typeset(c.title))
            for c in self.columns
        )
        bodies = Markup()
        for fixed in (True, False):
            if rows := [self._row(row) for row in self.rows if row.fixed is fixed]:
                kind = Markup(' class="fixed"') if fixed else Markup()
                bodies += Markup("<tbody{}>{}</tbody>").format(kind, Markup("\n").join(rows))
        return Markup(
            '<div class="scroll" role="region" aria-label="{}" tabindex="0"><table{}>\n'
            "<thead><tr>{}</tr></thead>\n{}</table></div>"
        ).format(self.name, _css(self.css), heads, bodies)

    def _row(self, row: Row) -> Markup:
        cells = Markup()
        for i, (column, cell) in enumerate(zip(self.columns, row.each(), strict=True)):
            text: str = fmt.typeset(cell.text) if column.numeric else cell.text
            text = Markup("<code>{}</code>").format(text) if cell.code and text else text
            text = Markup('<a href="{}">{}</a>').format(cell.link, text) if cell.link else text
            mark = Markup('<span class="badge">{}</span>').format(cell.mark) if cell.mark else Markup()
            inner = Markup("{}{}{}").format(cell.before, mark, text)
            key = Markup() if cell.key is None else Markup(' data-v="{}"').format(_key(cell.key))
            css = _css("n" if column.numeric else "", column.css, cell.css)
            shape = '<th scope="row"{}{}>{}</th>' if i == 0 else "<td{}{}>{}</td>"
            cells += Markup(shape).format(css, key, inner)
        filters = Markup().join(Markup(' data-{}="{}"').format(name, text) for name, text in row.filters.items())
        return Markup("<tr{}{}>{}</tr>").format(_css(row.css), filters, cells)

    def markdown(self) -> str:
        """Return the table in Markdown, harmless whatever its cells say."""
        lines = [" | ".join(escape(column.title) for column in self.columns)]
        lines.append(" | ".join("--:" if column.numeric else "---" for column in self.columns))
        lines += [" | ".join(map(_markdown, row.each())) for row in self.rows]
        return "".join(f"| {line} |\n" for line in lines)


def _css(*names: str) -> Markup:
    text = " ".join(filter(None, names))
    return Markup(' class="{}"').format(text) if text else Markup()


def _key(value: float) -> str:
    """Return a sort key for the page's script; what is not a number goes last, infinity before it."""
    return "9e999" if value != value else "9e99" if value in (float("inf"), -float("inf")) else repr(value)


def _markdown(cell: Cell) -> str:
    text = code(cell.text).replace("|", "\\|") if cell.code and cell.text else escape(cell.text)
    return f"**{text}** ({cell.mark})" if cell.mark else text


def escape(text: str) -> str:
    """Make text harmless inside a line or a table cell of Markdown: no markup, no HTML, no line break."""
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", text)


def code(text: str) -> str:
    """Return text as a code span of Markdown."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
