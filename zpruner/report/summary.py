"""The few numbers of every variant that `dvc metrics` and `dvc exp show` list."""

from __future__ import annotations

import math

from zpruner.artifacts.result_file import shown_fields, value_at
from zpruner.artifacts.results import Metrics
from zpruner.report.data import ReportData


def summary(data: ReportData) -> dict[str, dict[str, float]]:
    """Return variant -> metric -> value: those that the schema marks for a summary, and the change against dense."""
    fields = {path: shown for path, shown in shown_fields(Metrics).items() if shown.in_summary}
    dense, found = data.dense.metrics.perplexity, {}
    for name, evaluation in data.named.items():
        values = {shown: value_at(evaluation.metrics, path) for path, shown in fields.items()}
        found[name] = {shown.title: shown.number(value) for shown, value in values.items() if value is not None}
        if evaluation is not data.dense:
            found[name]["change"] = evaluation.metrics.perplexity / dense - 1 if dense else math.nan
    return found
