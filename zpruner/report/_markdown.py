"""The report as Markdown."""

from __future__ import annotations

import html
import re

from markupsafe import Markup

from zpruner.artifacts.results import ZeroShot
from zpruner.report import _costs, _facts, _published, _tasks
from zpruner.report import _format as fmt
from zpruner.report._pages import environment
from zpruner.report._summary import Row, summarise
from zpruner.report.data import ReportData


def render_markdown(data: ReportData) -> str:
    """Return the document: headline, table, settings, provenance and commands."""
    pages = environment(md=escape, code=code, cell=cell_code)
    summary = summarise(data)
    return pages.get_template("report.md.j2").render(
        title=_facts.title(data),
        dense=cells(summary.dense),
        rows=[cells(row) for row in summary.rows],
        headlines=summary.headlines,
        fmt=fmt,
        facts=_facts.collect(data),
        divergences=[v for v in data.variants if v.evaluation.metrics.divergence is not None],
        scores=[
            (name, found.sparsity, score) for name, found in _zero_shots(data) for score in _tasks.scores_of(found)
        ],
        sizes=_tasks.size_table(data),
        costs=_costs.cost_table(data),
        published=_published.published(data),
        estimator=_facts.estimator_note(data),
        folder=data.folder,
    )


def _zero_shots(data: ReportData) -> list[tuple[str, ZeroShot]]:
    found = [("dense", data.dense), *((v.spec.name, v.evaluation) for v in data.variants)]
    return [(name, e.metrics.zero_shot) for name, e in found if e.metrics.zero_shot is not None]


def escape(text: str) -> Markup:
    """Make text harmless inside a line or a table cell: no markup, no HTML, no line break."""
    text = html.escape(" ".join(text.split()), quote=False)
    return Markup(re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", text))


def code(text: str) -> Markup:
    """Return text as a code span."""
    text = " ".join(text.split())
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def cell_code(text: str) -> Markup:
    """Return text as a code span inside a table, where a bar ends the cell even in code."""
    return Markup(code(text).replace("|", "\\|"))


def cells(row: Row) -> list[Markup]:
    """Return one line of the table, escaped."""
    metrics, spec = row.evaluation.metrics, row.spec
    perplexity = fmt.perplexity(metrics.perplexity)
    texts = [
        "dense" if spec is None else escape(spec.method),
        "" if spec is None else escape(f"{spec.pattern_text} ({spec.sparsity})"),
        "" if spec is None else escape(spec.propagation),
        fmt.percent(metrics.sparsity),
        f"**{perplexity}** (best)" if row.best else perplexity,
        "" if spec is None else fmt.change(row.ratio),
        "" if spec is None else fmt.change_interval(row.ratio_interval),
        "" if spec is None else fmt.error(metrics.layer_error),
        "" if row.seconds is None else fmt.seconds(row.seconds),
    ]
    return [Markup(text) for text in texts]
