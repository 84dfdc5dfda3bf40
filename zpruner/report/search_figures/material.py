"""How often operators and operands occur, among the best formulas and among all."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.report.page import Figure
from zpruner.report.search_data import SearchData
from zpruner.report.table import Cell, Column, Row, Table
from zpruner.search import name_frequencies, parse_formula


def figure(data: SearchData) -> Figure:
    """Return occurrences per formula, the most frequent among the best first."""
    every = [parse_formula(e.formula) for e in data.log.evaluations if e.rung == 0]
    best = [parse_formula(found.evaluation.formula) for found in data.found]
    top, whole = name_frequencies(best), name_frequencies(every)
    found = [(n, top[n] / max(len(best), 1), whole[n] / max(len(every), 1)) for n in whole if whole[n] or top[n]]
    found.sort(key=lambda row: (-row[1], -row[2], row[0]))
    widest = max([0.01, *(value for _, *values in found for value in values)])
    rows = tuple(
        Row((Cell(name, code=True), f"{a:.2f}", _bar(a / widest, 0), f"{b:.2f}", _bar(b / widest, 1)))
        for name, a, b in found
    )
    columns = (
        Column("name"),
        Column(f"per formula, best {len(best)}", numeric=True),
        Column("", css="barcol"),
        Column("per formula, all", numeric=True),
        Column("", css="barcol"),
    )
    return Figure(Table("How often operators and operands occur", columns, rows, "narrow").html())


def _bar(share: float, colour: int) -> Cell:
    bar = Markup('<span class="bar"><i class="b{}" style="width:{:.1f}%"></i></span>').format(colour, 100 * share)
    return Cell(before=bar)
