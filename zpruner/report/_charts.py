"""The charts as Vega-Lite specifications, grouped into figures for the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from zpruner.report import _format as fmt
from zpruner.report._axes import quantity
from zpruner.report._plots import by_block
from zpruner.report._summary import Row, Summary
from zpruner.report._svg import to_svg
from zpruner.report._theme import COLOURS, Style, styles
from zpruner.report.data import ReportData, Variant, VariantSpec

_POINTS_LIMIT = 3000
"""More points than this per figure would make a slow page: lines alone are drawn then."""
_CLOSE = 3.0
"""Where variants lie beyond this multiple of dense, the others get a view of their own."""
_WIDTH = 400
"""Of the plot of a perplexity panel, in pixels."""
Spec = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One chart of a figure."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class PerplexityFigure:
    """Perplexity against sparsity, a close-up where some lie far off, and the names of what could not be drawn."""

    panels: tuple[Panel, ...]
    left_out: tuple[str, ...]


def perplexity_figure(data: ReportData, summary: Summary) -> PerplexityFigure | None:
    """Draw every finite variant with its interval, the dense model as a baseline; None without variants."""
    rows = [row for row in summary.rows if math.isfinite(row.perplexity)]
    if not rows or not math.isfinite(summary.dense.perplexity):
        return None
    label = "Perplexity against achieved sparsity; the table holds the numbers."
    left_out = tuple(
        f"{row.spec.name} ({fmt.perplexity(row.perplexity)})"
        for row in summary.rows
        if row.spec and not math.isfinite(row.perplexity)
    )
    style = styles(data.method_names)
    views = {"All variants": rows}
    near = [row for row in rows if row.ratio is not None and row.ratio <= _CLOSE]
    if 2 <= len(near) < len(rows):
        views[f"Close-up: up to {_CLOSE:g} times dense"] = near
    panels = (Panel(title, to_svg(_perplexity(summary.dense, shown, style), label)) for title, shown in views.items())
    return PerplexityFigure(tuple(panels), left_out)


def change_panels(data: ReportData, summary: Summary) -> list[Panel]:
    """Per sparsity, each method's perplexity divided by that of dense with its paired interval."""
    style, panels = styles(data.method_names), []
    for name in data.sparsity_names:
        rows = [r for r in summary.rows if r.spec and r.spec.sparsity == name and r.ratio_interval and r.ratio]
        if rows:
            label = f"Perplexity relative to dense at {name}, by method; the table holds the numbers."
            panels.append(Panel(_title(data, name), to_svg(_changes(rows, style), label)))
    return panels


def block_panels(data: ReportData, field: str) -> list[Panel]:
    """Per sparsity, `layer_error` or `sparsity` of every decoder block, one line per method."""
    style, column = styles(data.method_names), {"sparsity": 1, "layer_error": 2}[field]
    series = [(v, [(b[0], b[column]) for b in by_block(v.evaluation.details.layers)]) for v in data.variants]
    values = [value for _, points in series for _, value in points if math.isfinite(value)]
    if not values:
        return []
    dots = len(values) <= _POINTS_LIMIT
    panels = []
    for name in data.sparsity_names:
        shown = [(v, points) for v, points in series if v.spec.sparsity == name and points]
        if shown:
            what = "Layer error" if field == "layer_error" else "Achieved sparsity"
            label = f"{what} of every block at {name}, by method; the heat maps hold the numbers."
            spec = _blocks(shown, field, values, style, dots)
            panels.append(Panel(_title(data, name), to_svg(spec, label)))
    return panels


def _title(data: ReportData, sparsity: str) -> str:
    spec = next(v.spec for v in data.variants if v.spec.sparsity == sparsity)
    return f"{spec.pattern_text} · {sparsity}"


def _perplexity(dense: Row, rows: Sequence[Row], style: dict[str, Style]) -> Spec:
    sparsities = [row.evaluation.metrics.sparsity for row in rows]
    pad = max((max(sparsities) - min(sparsities)) * 0.08, 0.02)
    span = max(sparsities) - min(sparsities) + 2 * pad
    points = []
    for row, offset in zip(rows, _dodge(sparsities, span), strict=True):
        assert row.spec is not None
        low, high = (row.interval.low, row.interval.high) if row.interval else (None, None)
        noise = f", 95 % interval {fmt.perplexity(low)} to {fmt.perplexity(high)}" if low and high else ""
        text = f"{row.spec.method}, {row.spec.pattern_text}: {fmt.perplexity(row.perplexity)}{noise}"
        points.append(
            {**_named(row.spec), "x": row.evaluation.metrics.sparsity + offset, "y": row.perplexity}
            | {"low": low, "high": high, "t": f"{text} ({fmt.change(row.ratio)})"}
        )
    extent = [dense.perplexity, *(p[key] for p in points for key in ("y", "low", "high") if p[key] is not None)]
    # Room below the baseline for its name, which would lie under the points above it.
    extent.append(dense.perplexity / (max(extent) / dense.perplexity) ** 0.1)
    y = quantity("y", "perplexity", extent, label=",~f")
    x = quantity("x", "achieved sparsity", [min(sparsities) - pad, max(sparsities) + pad], label=".0%", log_from=1e9)
    x["axis"] |= {"grid": False, "domain": True, "ticks": True}
    ticks = sorted({round(value, 2) for value in sparsities})
    if all(b - a > pad for a, b in itertools.pairwise(ticks)):
        x["axis"]["values"] = ticks
    text = f"dense: {fmt.perplexity(dense.perplexity)}"
    base = {"data": {"values": [{"y": dense.perplexity, "t": text}]}}
    line = {"mark": {"type": "rule", "color": COLOURS["ink"][0], "strokeDash": [5, 4]}, "encoding": {"y": y}}
    mark = {"type": "text", "align": "right", "dx": -4, "dy": 9, "color": COLOURS["ink"][0], "fontSize": 11}
    series = {"color": _colour(style), "x": x}
    return {
        "width": _WIDTH,
        "height": 290,
        "data": {"values": points},
        "layer": [
            {**base, **line},
            {**base, "mark": mark, "encoding": {"y": y, "x": {"value": _WIDTH}, "text": {"field": "t"}}},
            {
                "transform": [{"filter": "!datum.nm"}],
                "mark": {"type": "line", "strokeWidth": 1.6},
                "encoding": {**series, "y": y},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.2},
                "encoding": {**series, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            *_marks(series | {"y": y}, style, 56),
        ],
    }


def _changes(rows: Sequence[Row], style: dict[str, Style]) -> Spec:
    points = []
    for row in sorted(rows, key=lambda r: r.perplexity):
        assert row.spec is not None
        assert row.ratio is not None
        assert row.ratio_interval is not None
        interval = row.ratio_interval
        text = f"{row.spec.method}: {fmt.change(row.ratio)}, 95 % interval {fmt.change_interval(interval)}"
        points.append(
            {**_named(row.spec), "x": row.ratio - 1, "low": interval.low - 1, "high": interval.high - 1, "t": text}
        )
    extent = [p[key] for p in points for key in ("x", "low", "high")]
    logarithmic = min(extent) > 0 and max(extent) / min(extent) >= 3
    x = quantity("x", "change against dense", extent if logarithmic else [0.0, *extent], label="+,~%")
    y = {"field": "method", "type": "nominal", "title": None, "axis": {"domain": False, "ticks": False}}
    y["sort"] = [p["method"] for p in points]  # type: ignore[assignment]
    series = {"color": _colour(style), "y": y}
    dense = {"mark": {"type": "rule", "color": COLOURS["ink"][0], "strokeDash": [5, 4]}, "encoding": {"x": x}}
    return {
        "width": 235,
        "padding": {"left": 10, "top": 5, "right": 5, "bottom": 5},
        "height": {"step": 24},
        "data": {"values": points},
        "layer": [
            *([] if logarithmic else [{"data": {"values": [{"x": 0}]}, **dense}]),
            {
                "mark": {"type": "rule", "strokeWidth": 1.6},
                "encoding": {**series, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            *_marks(series | {"x": x}, style, 56),
        ],
    }


def _blocks(
    shown: Sequence[tuple[Variant, list[tuple[int, float]]]],
    field: str,
    values: Sequence[float],
    style: dict[str, Style],
    dots: bool,
) -> Spec:
    text = fmt.error if field == "layer_error" else fmt.percent
    points = [
        {**_named(v.spec), "x": block, "y": y, "t": f"{v.spec.method}, block {block}: {text(y)}"}
        for v, series in shown
        for block, y in series
        if math.isfinite(y)
    ]
    last = max(p["x"] for p in points)
    if field == "sparsity":  # near enough to each other, ticks would have the same label
        values = [min(values) - 0.005, max(values) + 0.005]
    y = quantity("y", None, values, label="~f" if field == "layer_error" else ".1~%")
    y["axis"]["tickCount"] = 3 if field == "sparsity" else 5
    axis = {"title": "block", "grid": False, "tickCount": min(last + 1, 8), "format": "d"}
    x = {"field": "x", "type": "quantitative", "axis": axis, "scale": {"domain": [-0.5, last + 0.5], "nice": False}}
    encoding = {"x": x, "y": y, "color": _colour(style)}
    layers: list[Spec] = [{"mark": {"type": "line", "strokeWidth": 1.4}, "encoding": encoding}]
    return {
        "width": 280,
        "height": 190 if field == "layer_error" else 70,
        "data": {"values": points},
        "layer": layers + (_marks(encoding, style, 9) if dots else []),
    }


def _named(spec: VariantSpec) -> dict[str, Any]:
    return {"method": spec.method, "nm": spec.is_nm}


def _colour(style: dict[str, Style]) -> Spec:
    scale = {"domain": list(style), "range": [s.light for s in style.values()]}
    return {"field": "method", "type": "nominal", "legend": None, "scale": scale}


def _marks(encoding: Spec, style: dict[str, Style], size: int) -> list[Spec]:
    """Points with tooltips: shape by method, filled where unstructured, hollow where N:M."""
    shape = {"field": "method", "type": "nominal", "legend": None}
    shape["scale"] = {"domain": list(style), "range": [s.shape for s in style.values()]}  # type: ignore[assignment]
    channels = {**encoding, "shape": shape, "description": {"field": "t"}}
    colour = encoding["color"]
    paper = COLOURS["paper"][0]
    return [
        {
            "transform": [{"filter": "!datum.nm"}],
            "mark": {"type": "point", "size": size, "opacity": 1, "strokeWidth": 0, "filled": True},
            "encoding": channels,
        },
        {
            "transform": [{"filter": "datum.nm"}],
            "mark": {"type": "point", "size": size, "opacity": 1, "strokeWidth": 1.6, "fill": paper},
            "encoding": {k: v for k, v in channels.items() if k != "color"} | {"stroke": colour},
        },
    ]


def _dodge(xs: Sequence[float], span: float) -> list[float]:
    """Offsets that set points of nearly equal x apart, so that their intervals do not hide each other.

    Neighbours stand 7 pixels apart, less where a group would else be wider than a tenth of the axis (`span`).
    """
    clusters: dict[float, list[int]] = {}
    for i, x in enumerate(xs):
        clusters.setdefault(round(x, 2), []).append(i)
    offsets = [0.0] * len(xs)
    for members in clusters.values():
        step = span * min(7 / _WIDTH, 0.1 / len(members))
        for rank, i in enumerate(members):
            offsets[i] = (rank - (len(members) - 1) / 2) * step
    return offsets
