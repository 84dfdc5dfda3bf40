"""Tables, plots and the HTML report, from evaluation and cost files alone: no model, no tensors."""

from zpruner.report.contents import write
from zpruner.report.data import ReportData
from zpruner.report.ending import ending
from zpruner.report.load import load, load_project
from zpruner.report.terminal import render_table

__all__ = [
    "ReportData",
    "ending",
    "load",
    "load_project",
    "render_table",
    "write",
]
