"""The best formulas beside the known methods, and the one found as a tree."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.report.page import Figure, note
from zpruner.report.search_data import SearchData, name_of, perplexity_of
from zpruner.report.table import Cell, Column, Row, Table, escape
from zpruner.search import draw_svg, draw_text, parse_formula


def table(data: SearchData) -> Figure:
    """Return the best formulas, the chosen one marked."""
    columns = (
        Column("perplexity", numeric=True, css="p"),
        Column("formula"),
        Column("nodes", numeric=True),
        Column("from"),
        Column("generation", numeric=True),
        *(Column(f"like {name_of(name)}", numeric=True) for name in data.known),
    )
    rows = []
    for found in data.found:
        e, alike = found.evaluation, found.correlations
        assert e.fitness is not None
        rows.append(
            Row(
                (
                    perplexity_of(e.fitness),
                    Cell(e.formula, code=True, mark="chosen" if found.is_winner else ""),
                    str(found.size),
                    e.operator,
                    str(e.generation),
                    *(f"{alike[name]:.3f}" if name in alike else "" for name in data.known),
                ),
                "best" if found.is_winner else "",
            )
        )
    for name, value in data.known.items():
        cells = (perplexity_of(value), f"{name_of(name)}, the known method", "", "", "", *("" for _ in data.known))
        rows.append(Row(cells, "i"))
    shown = Table("The best formulas", columns, tuple(rows), "formulas")
    text = (
        "Like is the rank correlation of a formula's scores with a method's, averaged over the layers of the middle "
        "block: 1 means the same order of all weights. The formula is chosen by log perplexity plus "
        f"{data.log.settings['size_penalty']} for each node."
    )
    return Figure(shown.html() + note(text), markdown=f"{shown.markdown()}\n{escape(text)}\n")


def tree(data: SearchData) -> Figure:
    """Draw the formula found."""
    found = parse_formula(data.result.formula)
    body = Markup('<div class="tree">{}</div>').format(Markup(draw_svg(found)))
    return Figure(body, "The formula found, as a tree", markdown=f"```\n{draw_text(found)}\n```\n")
