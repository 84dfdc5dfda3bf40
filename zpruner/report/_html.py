"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import math

from zpruner.evaluate.masks import SAMPLE
from zpruner.report import _charts, _costs, _facts, _masks, _published, _tasks, _theme
from zpruner.report import _format as fmt
from zpruner.report._heat import heat_groups
from zpruner.report._pages import environment
from zpruner.report._summary import summarise
from zpruner.report.data import ReportData


def render_html(data: ReportData) -> str:
    """Return the page."""
    pages = environment(typeset=fmt.typeset, sortable=_sortable)
    summary = summarise(data)
    specs = [variant.spec for variant in data.variants]
    removed = [(la.weights, la.sparsity) for v in data.variants[:1] for la in v.evaluation.details.layers]
    return pages.get_template("report.html.j2").render(
        title=_facts.title(data),
        data=data,
        summary=summary,
        fmt=fmt,
        theme=_theme,
        styles=_theme.styles(data.method_names),
        choices=_choices(
            method=[s.method for s in specs],
            pattern=[s.kind for s in specs],
            sparsity=[s.share_text for s in specs],
            propagation=[s.propagation for s in specs],
        ),
        mixed=any(s.is_nm for s in specs) and not all(s.is_nm for s in specs),
        weights=fmt.count(sum(weights for weights, _ in removed)) if removed else "",
        perplexity=_charts.perplexity_figure(data, summary),
        changes=_charts.change_panels(data, summary),
        block_errors=_charts.block_panels(data, "layer_error"),
        block_sparsities=_charts.block_panels(data, "sparsity"),
        heat={"layer error": heat_groups(data, "layer_error"), "achieved sparsity": heat_groups(data, "sparsity")},
        divergences=[v for v in data.variants if v.evaluation.metrics.divergence is not None],
        tasks=_tasks.task_figure(data),
        published=_published.published(data),
        overlaps=_masks.overlaps(data),
        sample=fmt.count(SAMPLE),
        histograms=_masks.histogram_panels(data),
        sizes=_tasks.size_table(data),
        costs=_costs.cost_table(data),
        shared=_costs.shared_costs(data),
        facts=_facts.collect(data),
        estimator=_facts.estimator_note(data),
    )


def _choices(**columns: list[str]) -> dict[str, list[str]]:
    """Return the distinct values of each column to filter by; nothing to filter with fewer than two variants."""
    return {name: list(dict.fromkeys(values)) for name, values in columns.items() if len(values) > 1}


def _sortable(value: float | None) -> str:
    """Return a sort key for the page's script; what is not a number goes last, infinity before it."""
    if value is None or math.isnan(value):
        return "9e999"
    return "9e99" if math.isinf(value) else repr(float(value))
