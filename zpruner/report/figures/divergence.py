"""How far predictions are from those of the dense model, token by token."""

from __future__ import annotations

from zpruner.report import format as fmt
from zpruner.report.marks import swatch_of
from zpruner.report.page import Figure
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table


def figure(report: Report) -> Figure | None:
    """Return KL divergence and agreement of every variant that was compared."""
    rows, windows = [], 0
    for variant in report.data.variants:
        found = variant.metrics.divergence
        if found is not None:
            windows = found.windows
            rows.append(
                Row(
                    (
                        Cell(variant.spec.name, before=swatch_of(report, variant.spec)),
                        Cell(fmt.error(found.kl), found.kl),
                        fmt.interval(found.kl_interval, fmt.error),
                        Cell(fmt.percent(found.top1_agreement), found.top1_agreement),
                        fmt.interval(found.top1_agreement_interval, fmt.percent),
                    )
                )
            )
    if not rows:
        return None
    several = windows > 1  # of one window there is no interval
    noise = Column("95 % interval", numeric=True, css="i")
    numbers = (Column("KL per token", numeric=True), noise, Column("same top token", numeric=True), noise)
    columns = (Column("variant"), *numbers)
    kept = [i for i, column in enumerate(columns) if several or column is not noise]
    rows = [Row(tuple(row.cells[i] for i in kept)) for row in rows]
    table = Table("Divergence from dense", tuple(columns[i] for i in kept), tuple(rows), "narrow sorted")
    caption = (
        "How far the next-token distribution is from the dense model's on the same text: KL(dense ‖ pruned) in nats "
        f"per token, and how often both rank the same token first. Windows compared: {fmt.count(windows)}."
    )
    return Figure(table.html(), "Token by token against dense", fmt.typeset(caption))
