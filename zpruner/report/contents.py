"""What a report shows, in order: sections, and the figures of each. A new figure is its file and one entry here."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from zpruner.artifacts.files import write_json
from zpruner.report import format as fmt
from zpruner.report.data import ReportData
from zpruner.report.figures import (
    blocks,
    change,
    commands,
    cost,
    divergence,
    facts,
    frontier,
    headline,
    heat,
    offers,
    overlap,
    published,
    results,
    samples,
    scores,
    tasks,
)
from zpruner.report.page import Page, Section, fill
from zpruner.report.plots import layer_points, perplexity_points
from zpruner.report.ranking import Report
from zpruner.report.summary import summary

CONTENTS: tuple[Section[Report], ...] = (
    ("", (headline.figure,)),
    ("Results", (results.figure,)),
    ("Bytes and speed", (offers.answers, frontier.figure, offers.figure)),
    ("Perplexity", (change.figure,)),
    ("Predictions", (samples.continued, divergence.figure, samples.figure, tasks.figure, published.figure)),
    (
        "Layers",
        (
            blocks.layer_error,
            blocks.sparsity,
            heat.layer_error,
            heat.sparsity,
            heat.shrinkage,
            heat.damping,
            heat.share,
        ),
    ),
    ("Masks", (overlap.figure, scores.figure)),
    ("Cost", (cost.figure,)),
    ("Provenance", (facts.figure, commands.figure)),
)


def write(data: ReportData, folder: Path) -> None:
    """Write report.html, report.md, summary.json and plots/ into `folder`.

    Everything is computed before the first file is replaced, and each file is replaced whole. Equal data gives equal
    bytes.

    Raises:
        DiskFullError: no space left.
    """
    page = page_of(data)
    plots = {"perplexity": perplexity_points(data), "layers": layer_points(data)}
    numbers = summary(data)
    page.write(folder)
    write_json(folder / "summary.json", numbers)
    for name, points in plots.items():
        write_json(folder / "plots" / f"{name}.json", points)


def page_of(data: ReportData) -> Page:
    """Return the report as a page."""
    name = data.model.get("name") or str(data.model.get("source") or "").rstrip("/").rpartition("/")[2]
    return Page("Pruning report", str(name or "the model"), _about(data), fill(CONTENTS, Report.of(data)))


def _about(data: ReportData) -> Markup:
    metrics, count = data.dense.metrics, len(data.variants)
    weights = sum(layer.weights for variant in data.variants[:1] for layer in variant.details.layers)
    text = f"{count} variant{'s' if count != 1 else ''}"
    text += f" of {fmt.count(weights)} prunable weights" if weights else ""
    text += f", perplexity on {fmt.count(metrics.windows)} windows of {fmt.count(metrics.seqlen)} tokens"
    windows = str(data.dense.details.provenance.get("evaluation_hash") or "")
    same = Markup(", the same for all (SHA-256 <code>{}…</code>)").format(windows[:12]) if windows else Markup()
    return Markup("{}{}").format(text, same)
