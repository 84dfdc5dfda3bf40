"""A page of figures in sections: one HTML file that needs nothing else, and Markdown.

A figure is one function: data in, `Figure` out, or None where there is nothing to show. A section is a title and its
figures; it stands on the page, and in the navigation, where one of them has something to show.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from zpruner.artifacts.files import atomic_file
from zpruner.report import theme
from zpruner.report.format import typeset
from zpruner.report.table import Table, escape

Data = TypeVar("Data")


@dataclass(frozen=True)
class Figure:
    """One thing to look at.

    Attributes:
        body: HTML.
        title: begins the caption; a figure without one has none.
        caption: the rest of it, text or HTML.
        markdown: what `report.md` holds of it.
    """

    body: Markup
    title: str = ""
    caption: str = ""
    markdown: str = ""

    def html(self) -> Markup:
        """Return the figure."""
        if not self.title:
            return self.body
        return Markup("<figure>\n<figcaption><b>{}.</b> {}</figcaption>\n{}\n</figure>").format(
            self.title, self.caption, self.body
        )


Section = tuple[str, tuple[Callable[[Data], Figure | None], ...]]
"""A title, empty for none, and figures."""


@dataclass(frozen=True)
class Page:
    """What a page says, computed.

    Attributes:
        kind: what is reported, such as `Pruning report`.
        title: of what.
        about: a line below the title.
        sections: title -> figures.
    """

    kind: str
    title: str
    about: Markup
    sections: tuple[tuple[str, tuple[Figure, ...]], ...]

    def html(self) -> str:
        """Return the page."""
        return _templates().get_template("page.html.j2").render(page=self, theme=theme, slug=_slug)

    def markdown(self) -> str:
        """Return the document: those figures that have Markdown."""
        parts = [f"# {self.kind}: {escape(self.title)}\n", escape(self.about.striptags())]
        for title, figures in self.sections:
            texts = [figure.markdown for figure in figures if figure.markdown]
            parts += [f"## {title}\n"] if title and texts else []
            parts += texts
        return "\n".join(part.rstrip("\n") + "\n" for part in parts)

    def write(self, folder: Path) -> None:
        """Write report.html and report.md; both are rendered before the first is replaced, and each replaced whole.

        Raises:
            DiskFullError: no space left.
        """
        pages = {"report.html": self.html(), "report.md": self.markdown()}
        for name, text in pages.items():
            with atomic_file(folder / name) as file:
                file.write(text.encode())


def fill(contents: Sequence[Section[Data]], data: Data) -> tuple[tuple[str, tuple[Figure, ...]], ...]:
    """Return the sections of a table of contents that have something to show."""
    found = [(title, tuple(figure for make in makers if (figure := make(data)))) for title, makers in contents]
    return tuple((title, figures) for title, figures in found if figures)


def panels(charts: Sequence[tuple[str, Markup | Table]], css: str = "") -> Markup:
    """Return titled charts or tables side by side, as many as fit."""
    shown = Markup().join(
        Markup('<div class="panel"><h3>{}</h3>{}</div>\n').format(
            typeset(title), chart.html() if isinstance(chart, Table) else chart
        )
        for title, chart in charts
    )
    return Markup('<div class="panels {}">{}</div>').format(css, shown)


def note(text: str) -> Markup:
    """Return a paragraph of small print."""
    return Markup('<p class="note">{}</p>').format(text)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z]+", "-", title.lower())


@cache
def _templates() -> Environment:
    """The shell of a page: undefined names are errors, everything is escaped."""
    return Environment(
        loader=PackageLoader("zpruner.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
