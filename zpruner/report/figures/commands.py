"""Where each variant lies, how to make it again, and the provenance that others do not share."""

from __future__ import annotations

from zpruner.report import format as fmt
from zpruner.report.data import ReportData
from zpruner.report.figures.facts import shared
from zpruner.report.page import Figure, note
from zpruner.report.ranking import Report
from zpruner.report.table import Cell, Column, Row, Table

_IN_MEMORY = "made in memory"
"""What the provenance of a variant without a checkpoint says under `weights`."""
_TOLD = ("method", "pattern", "settings", "weights", "propagation", "model", "dense")
"""Provenance that the name of a variant, the lists above and the checkpoint's column tell."""


def figure(report: Report) -> Figure:
    """Return one row per model."""
    columns = (Column("variant"), Column("checkpoint"), Column("made again by"), Column("provenance", css="own"))
    data = report.data
    table = Table("Checkpoints and commands", columns, tuple(_rows(data)), "commands")
    text = (
        "At the commit above, with the params.yaml whose values are listed here, each command makes its variant again "
        "with all that it rests on; what is unchanged comes from the cache."
    )
    return Figure(table.html() + note(text), "Checkpoints and commands", markdown=f"{table.markdown()}\n{text}\n")


def _rows(data: ReportData) -> list[Row]:
    places = {"dense": ("models/dense", "evaluate_dense")}
    places |= {
        v.spec.name: (f"pruned/{v.spec.method}/{v.spec.sparsity}", f"evaluate@{v.spec.name}") for v in data.variants
    }
    common, rows = shared(data), []
    for name, evaluation in data.named.items():
        (path, stage), found = places[name], fmt.flat(evaluation.details.provenance)
        own = "; ".join(f"{key}: {value}" for key, value in found.items() if key not in common and key not in _TOLD)
        kept = found.get("weights") != _IN_MEMORY
        place = Cell(f"{data.folder}/{path}", code=True, link=f"../{path}/") if kept else Cell(f"none: {_IN_MEMORY}")
        rows.append(Row((name, place, Cell(f"dvc repro {stage}", code=True), Cell(own))))
    for spec in (variant.spec for variant in data.variants if variant.packed is not None):
        path = f"packed/{spec.method}/{spec.sparsity}"
        place = Cell(f"{data.folder}/{path}", code=True, link=f"../{path}/")
        rows.append(Row((f"{spec.name}, packed", place, Cell(f"dvc repro pack@{spec.name}", code=True), "")))
    return rows
