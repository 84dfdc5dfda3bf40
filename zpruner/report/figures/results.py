"""The table of results: every metric of the schema that is shown in tables, by variant."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup
from pydantic import BaseModel

from zpruner.artifacts.result_file import Shown, shown_fields, value_at
from zpruner.artifacts.results import Metrics
from zpruner.report import format as fmt
from zpruner.report.data import ReportData
from zpruner.report.known import why_so_much
from zpruner.report.marks import DENSE_SWATCH, swatch_of
from zpruner.report.page import Figure
from zpruner.report.ranking import Report, Standing
from zpruner.report.table import Cell, Column, Row, Table, escape

_PERPLEXITY = ("perplexity",)
HONESTY = (
    "A masked checkpoint is by itself neither smaller nor faster: its zeros are stored and multiplied like any other "
    "number. Savings need a sparse file format and kernels for the pattern."
)


def figure(report: Report) -> Figure:
    """Return the table, what filters it, and how to read it."""
    found, words = table(report), _words(report)
    read = Markup().join(Markup("<p>{}</p>").format(fmt.typeset(text)) for text in words)
    body = Markup('{}{}\n<div class="read"><h3>How to read this</h3>{}</div>').format(
        _filters(report), found.html(), read
    )
    return Figure(body, markdown="\n\n".join([found.markdown(), *(escape(text) for text in words)]))


def table(report: Report) -> Table:
    """Return the table: dense, then every variant; the best of each sparsity is marked."""
    fields = {
        path: shown
        for path, shown in shown_fields(Metrics).items()
        if shown.in_table and path != _PERPLEXITY and not (shown.where_it_differs and _equal(report.data, path))
    }
    columns = (
        Column("method"),
        Column("pattern"),
        Column("perplexity", numeric=True, css="p"),
        Column("change", numeric=True),
        Column("95 % interval", numeric=True, css="i", wide_only=True),
        *(Column(shown.title, numeric=True, wide_only=shown.is_size) for shown in fields.values()),
        Column("time", numeric=True),
    )
    rows = (_dense(report.data, fields), *(_row(report, standing, fields) for standing in report.standings))
    return Table("Results", columns, rows, "sorted results")


def _dense(data: ReportData, fields: Mapping[tuple[str, ...], Shown]) -> Row:
    metrics = data.dense.metrics
    cells = (Cell("dense", before=DENSE_SWATCH), "", fmt.perplexity(metrics.perplexity), "", "")
    return Row((*cells, *(_cell(metrics, path, shown) for path, shown in fields.items()), ""), fixed=True)


def _row(report: Report, standing: Standing, fields: Mapping[tuple[str, ...], Shown]) -> Row:
    variant, spec = standing.variant, standing.variant.spec
    low = standing.ratio_interval.low if standing.ratio_interval else None
    cells = (
        Cell(spec.method, before=swatch_of(report, spec)),
        Cell(f"{spec.pattern_text} ({spec.sparsity})", spec.removed),
        Cell(fmt.perplexity(standing.perplexity), standing.perplexity, mark="best" if standing.best else ""),
        Cell(fmt.change(standing.ratio), standing.ratio),
        Cell(fmt.interval(standing.ratio_interval, fmt.change), low),
        *(_cell(variant.metrics, path, shown) for path, shown in fields.items()),
        Cell(f"{fmt.seconds(variant.seconds)} s", variant.seconds),
    )
    filters = {"method": spec.method, "pattern": spec.kind, "sparsity": spec.share_text}
    return Row(cells, "best" if standing.best else "", filters)


def _equal(data: ReportData, path: tuple[str, ...]) -> bool:
    """Return whether a metric is the same in all models."""
    return len({value_at(evaluation.metrics, path) for evaluation in data.named.values()}) == 1


def _cell(metrics: BaseModel, path: tuple[str, ...], shown: Shown) -> Cell:
    value = value_at(metrics, path)
    return Cell() if value is None else Cell(fmt.metric(shown, value), value)


def _filters(report: Report) -> Markup:
    """Return lists to filter the table by; none with fewer than two variants."""
    specs = [variant.spec for variant in report.data.variants]
    if len(specs) < 2:
        return Markup()
    columns = {
        "method": [spec.method for spec in specs],
        "pattern": [spec.kind for spec in specs],
        "sparsity": [spec.share_text for spec in specs],
    }
    lists = Markup()
    for name, values in columns.items():
        options = Markup().join(
            Markup('<option value="{}">{}</option>').format(value, fmt.typeset(value))
            for value in dict.fromkeys(values)
        )
        lists += Markup('<label>{} <select data-filter="{}"><option value="">all</option>{}</select></label>\n').format(
            name, name, options
        )
    return Markup(
        '<form class="controls" id="filters" aria-label="Filter the table" hidden>{}'
        '<button type="reset">Show all</button> <output aria-live="polite" id="shown"></output></form>\n'
    ).format(lists)


def _words(report: Report) -> list[str]:
    first = "Perplexity is the exponential of the mean loss per token; lower is better."
    if not report.data.variants:
        return [first]
    windows = fmt.count(report.data.dense.metrics.windows)
    return [
        f"{first} Change is against the dense model on the same windows, with Student's 95 % interval, paired "
        f"over the {windows} windows: two variants whose intervals overlap widely may differ by chance. Sparsity is "
        f"the share of zeros found in the prunable weights. {_estimator(report.data)} Time is that of score, "
        "mask and apply.",
        HONESTY,
        *filter(None, [why_so_much(report)]),
    ]


def _estimator(data: ReportData) -> str:
    """Return how layer errors were measured."""
    diagonal = [v.spec.name for v in data.variants if v.details.layers and v.details.layer_error_from == "diagonal"]
    words = "Layer error is the mean over all layers of ‖(W − W′)X‖² / ‖WX‖², "
    if not diagonal:
        return f"{words}exact for the inputs that calibration saw in the unpruned model (from their Gram matrix)."
    if len(diagonal) == sum(bool(v.details.layers) for v in data.variants):
        return f"{words}estimated from the diagonal of the Gram matrix, which takes inputs as uncorrelated."
    return (
        f"{words}exact for the inputs that calibration saw, except for {', '.join(diagonal)}: there estimated from the "
        "diagonal of the Gram matrix, so do not compare those with the others."
    )
