"""Settings and provenance that all results share."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.data import ReportData
from zpruner.report.page import Figure
from zpruner.report.ranking import Report


def figure(report: Report) -> Figure:
    """Return everything known about how the numbers came about."""
    data = report.data
    metrics = data.dense.metrics
    methods = {
        name: ", ".join(f"{key}: {value}" for key, value in fmt.flat(settings).items()) or "defaults"
        for name, settings in data.methods.items()
    }
    evaluation = {
        "windows": fmt.count(metrics.windows),
        "tokens per window": fmt.count(metrics.seqlen),
        "tokens": fmt.count(metrics.tokens),
        **fmt.flat(data.evaluation),
    }
    return groups(
        {
            "Model": fmt.flat(data.model),
            "Calibration": fmt.flat(data.calibration),
            "Evaluation": evaluation,
            "Methods": methods,
            "Provenance": shared(data) | fmt.flat(data.provenance),
        }
    )


def groups(found: Mapping[str, Mapping[str, str]]) -> Figure:
    """Return titled lists of facts; empty ones are left out."""
    lists = Markup()
    for title, facts in found.items():
        if facts:
            entries = Markup().join(Markup("<dt>{}</dt><dd>{}</dd>").format(key, value) for key, value in facts.items())
            lists += Markup("<div><h3>{}</h3><dl>{}</dl></div>\n").format(title, entries)
    return Figure(Markup('<div class="facts">{}</div>').format(lists))


def shared(data: ReportData) -> dict[str, str]:
    """Return the provenance in which all variants agree, and the dense model where it says anything there."""
    dense, *variants = (fmt.flat(evaluation.details.provenance) for evaluation in data.named.values())
    first, *others = variants or [dense]
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others) and dense.get(key, value) == value
    }
