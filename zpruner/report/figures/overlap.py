"""How much the masks of two methods have in common."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from zpruner.evaluate.masks import SAMPLE, jaccard
from zpruner.report import format as fmt
from zpruner.report.data import Variant
from zpruner.report.marks import swatch
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table
from zpruner.report.theme import HEAT


def figure(report: Report) -> Figure | None:
    """Return one table per sparsity with at least two masks."""
    tables, chances = [], []
    for variants in report.data.by_sparsity.values():
        shown = [variant for variant in variants if variant.details.mask_sample]
        if len(shown) > 1:
            tables.append((shown[0].spec.title, _table(report, shown)))
            kept = 1.0 - sum(variant.metrics.sparsity for variant in shown) / len(shown)
            chances.append(f"{kept / (2 - kept):.2f}")
    if not tables:
        return None
    caption = (
        "Jaccard index of the weights that two methods keep: the share kept by both of those kept by either, from "
        f"{fmt.count(SAMPLE)} sampled weights (standard error 0.002 or less). Two random masks would reach "
        f"{' or '.join(dict.fromkeys(chances))}."
    )
    return Figure(panels(tables, "two"), "Mask overlap", caption)


def _table(report: Report, shown: Sequence[Variant]) -> Table:
    columns = (Column("method"), *(Column(variant.spec.method, numeric=True) for variant in shown))
    rows = tuple(
        Row((Cell(v.spec.method, before=swatch(report.styles[v.spec.method])), *(_cell(v, other) for other in shown)))
        for v in shown
    )
    return Table(f"Mask overlap at {shown[0].spec.title}", columns, rows, "overlap")


def _cell(variant: Variant, other: Variant) -> Cell:
    index = 1.0 if variant is other else jaccard(variant.details.mask_sample, other.details.mask_sample)
    if index is None:  # masks of different models
        return Cell("-")
    step = min(len(HEAT) - 1, int(index * len(HEAT)))
    return Cell("1" if variant is other else f"{index:.2f}", before=Markup('<i class="h{}"></i>').format(step))
