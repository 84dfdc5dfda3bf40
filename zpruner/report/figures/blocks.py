"""Layer error and achieved sparsity of every decoder block, one line per method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from zpruner.artifacts.results import Layer
from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.data import Variant
from zpruner.report.marks import Spec, colour, legend, named, points
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report
from zpruner.report.svg import to_svg

_POINTS_LIMIT = 3000
"""More points than this per figure would make a slow page: lines alone are drawn then."""
UNIFORM = 5e-4
"""Achieved sparsities closer together than this are the same everywhere."""
Quantity = Literal["layer_error", "sparsity"]


def layer_error(report: Report) -> Figure | None:
    """Draw the layer error of every block."""
    caption = "Mean over the layers of each decoder block; one scale for all panels."
    return _figure(report, "layer_error", "Layer error per block", caption)


def sparsity(report: Report) -> Figure | None:
    """Draw the achieved sparsity of every block, where methods do not remove the same share everywhere."""
    caption = "Share of zeros over all prunable weights of the block, where a method spreads them unevenly."
    return _figure(report, "sparsity", "Achieved sparsity per block", caption)


def by_block(layers: Iterable[Layer]) -> dict[int, tuple[float, float]]:
    """Return block -> sparsity (over all its weights) and layer error (mean over its layers), in order."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.block, []).append(layer)
    return {block: aggregate(groups[block]) for block in sorted(groups)}


def aggregate(layers: Sequence[Layer]) -> tuple[float, float]:
    """Return the sparsity over all weights and the mean layer error of some layers."""
    weights = sum(layer.weights for layer in layers)
    zeros = sum(layer.sparsity * layer.weights for layer in layers)
    return zeros / weights if weights else 0.0, sum(layer.layer_error for layer in layers) / len(layers)


def _figure(report: Report, field: Quantity, title: str, caption: str) -> Figure | None:
    column = ("sparsity", "layer_error").index(field)
    shown: dict[str, list[tuple[Variant, list[tuple[int, float]]]]] = {}
    for label, variants in report.data.by_sparsity.items():
        for variant in variants:
            series = [(block, values[column]) for block, values in by_block(variant.details.layers).items()]
            if series and not (field == "sparsity" and _even(series)):
                shown.setdefault(label, []).append((variant, series))
    values = [y for group in shown.values() for _, series in group for _, y in series if math.isfinite(y)]
    if not values:
        return None
    charts = [
        (
            group[0][0].spec.title,
            to_svg(
                _chart(report, group, field, values), f"{title} at {label}, by method; the heat maps hold the numbers."
            ),
        )
        for label, group in shown.items()
    ]
    return Figure(legend(report) + panels(charts), title, caption)


def _even(series: Sequence[tuple[int, float]]) -> bool:
    return max(y for _, y in series) - min(y for _, y in series) < UNIFORM


def _chart(
    report: Report,
    group: Sequence[tuple[Variant, Sequence[tuple[int, float]]]],
    field: Quantity,
    every: Sequence[float],
) -> Spec:
    text: Callable[[float], str] = fmt.error if field == "layer_error" else fmt.percent
    values = [
        {**named(variant.spec), "x": block, "y": y, "t": f"{variant.spec.method}, block {block}: {text(y)}"}
        for variant, series in group
        for block, y in series
        if math.isfinite(y)
    ]
    dots = len(every) <= _POINTS_LIMIT
    last = max(block for _, series in group for block, _ in series)
    if field == "sparsity":  # near enough to each other, ticks would have the same label
        every = [min(every) - 0.005, max(every) + 0.005]
    y_axis = quantity("y", None, every, label="~f" if field == "layer_error" else ".1~%")
    y_axis["axis"]["tickCount"] = 5 if field == "layer_error" else 3
    axis = {"title": "block", "grid": False, "tickCount": min(last + 1, 8), "format": "d"}
    x_axis = {
        "field": "x",
        "type": "quantitative",
        "axis": axis,
        "scale": {"domain": [-0.5, last + 0.5], "nice": False},
    }
    encoding = {"x": x_axis, "y": y_axis, "color": colour(report.styles)}
    layers: list[Spec] = [{"mark": {"type": "line", "strokeWidth": 1.4}, "encoding": encoding}]
    return {
        "width": 280,
        "height": 190 if field == "layer_error" else 70,
        "data": {"values": values},
        "layer": layers + (points(encoding, report.styles, 9) if dots else []),
    }
