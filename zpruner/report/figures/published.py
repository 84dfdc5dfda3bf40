"""Our perplexities beside the published ones, where model, pattern, protocol and composition are the same.

The numbers lie in published.json: perplexity by preset (zpruner/pruning/presets.py) and model.
"""

from __future__ import annotations

from typing import Any

from zpruner.report import format as fmt
from zpruner.report.data import ReportData, Variant
from zpruner.report.known import is_preset, published
from zpruner.report.marks import swatch_of
from zpruner.report.page import Figure
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table


def figure(report: Report) -> Figure | None:
    """Return our numbers beside the papers', None where none can be compared."""
    table = published()
    if report.data.dense.details.provenance.get("evaluation_protocol") != table["protocol"]:
        return None
    rows = []
    for variant in report.data.variants:
        reference = _reference(report.data, variant, table)
        if reference is not None:
            ours = variant.metrics.perplexity
            cells = (fmt.perplexity(ours), fmt.perplexity(reference), fmt.change(ours / reference))
            rows.append(Row((Cell(variant.spec.method, before=swatch_of(report, variant.spec)), *cells)))
    if not rows:
        return None
    columns = (Column("method"), *(Column(title, numeric=True) for title in ("here", "published", "difference")))
    seqlen = fmt.count(report.data.dense.metrics.seqlen)
    note = f"Windows of {seqlen} tokens here. {table['note']}"
    return Figure(
        Table("Published perplexities", columns, tuple(rows), "narrow").html(),
        "Against published numbers",
        fmt.typeset(note),
    )


def _reference(data: ReportData, variant: Variant, table: dict[str, Any]) -> float | None:
    """Return what the paper reports for this very composition on this model, None where there is no such number."""
    if variant.spec.pattern != table["pattern"]:
        return None
    source = str(data.model.get("source") or "").lower().partition("@")[0].rstrip("/").rpartition("/")[2]
    model = next((name for name, spellings in table["models"].items() if source in spellings), None)
    for preset, numbers in table["perplexity"].items():
        if model is not None and is_preset(data.methods[variant.spec.method], preset):
            return float(numbers[model])
    return None
