"""What every model takes on disk, and how fast it is."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.artifacts.results import Metrics
from zpruner.report import format as fmt
from zpruner.report.data import Variant
from zpruner.report.marks import swatch_of
from zpruner.report.page import Figure, note
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table


def figure(report: Report) -> Figure:
    """Return bytes and tokens per second, columns that nothing fills left out."""
    dense = report.data.dense.metrics.bytes.stored
    rows = [("dense", Markup(), _sizes(report.data.dense.metrics, dense), ("", "", ""))]
    for variant in report.data.variants:
        rows.append(
            (variant.spec.name, swatch_of(report, variant.spec), _sizes(variant.metrics, dense), _speed(variant))
        )
    titles = ("stored", "bitmask and values", "N:M packed", "tokens/s", "dense beside it", "ratio")
    cells = [(Cell(name, before=mark), *sizes, *speed) for name, mark, sizes, speed in rows]
    shown = [i for i in range(len(titles)) if any(row[i + 1] for row in cells)]
    columns = (Column("model"), *(Column(titles[i], numeric=True) for i in shown))
    table = Table(
        "Size and speed of each model", columns, tuple(Row((row[0], *(row[i + 1] for i in shown))) for row in cells)
    )
    text = (
        "Bytes of all tensors, those that no method prunes included; the columns beside stored say what formats "
        "without zeros would take (packed: N values of every M weights and their positions, 2 bits each for 2:4)."
    )
    speeds = [variant.speed for variant in report.data.variants if variant.speed]
    if speeds:
        devices = ", ".join(sorted({f"{s.device} ({s.threads} threads)" for s in speeds}))
        tokens = ", ".join(sorted({fmt.count(s.tokens) for s in speeds}))
        text += (
            f" Speed: forward passes over {tokens} tokens on {devices}, pruned and dense model in turns in one "
            "process, so that a ratio of 1 means no difference."
        )
    return Figure(table.html() + note(text))


def _sizes(metrics: Metrics, dense: int) -> tuple[str, str, str]:
    found = metrics.bytes

    def text(size: int | None) -> str:
        if size is None:
            return ""
        share = f" ({size / dense:.0%})" if size != dense else ""
        return f"{size / 1e6:,.1f} MB{share}"

    return text(found.stored), text(found.bitmask), text(found.packed)


def _speed(variant: Variant) -> tuple[str, str, str]:
    found = variant.speed
    if found is None:
        return "", "", ""
    return f"{found.pruned:,.0f}", f"{found.dense:,.0f}", f"{found.pruned / found.dense:.2f}"
