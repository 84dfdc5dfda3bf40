"""Tables, plots and the HTML report, from evaluation and cost files alone: no model, no tensors."""

from zpruner.report._data import Cost, Evaluation, Layer, Metrics, ReportData, Variant, VariantSpec
from zpruner.report._load import load
from zpruner.report._terminal import render_table
from zpruner.report._write import write

__all__ = [
    "Cost",
    "Evaluation",
    "Layer",
    "Metrics",
    "ReportData",
    "Variant",
    "VariantSpec",
    "load",
    "render_table",
    "write",
]
