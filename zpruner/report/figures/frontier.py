"""Perplexity against achieved sparsity, where there is more than one sparsity to compare."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.marks import DASHED, INK, Spec, colour, legend, named, points
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report, Standing
from zpruner.report.svg import to_svg

_APART = 0.01
"""Achieved sparsities closer together than this are one: a chart over them would be an empty frame."""
_CLOSE = 3.0
"""Where variants lie beyond this multiple of dense, the others get a view of their own."""
_WIDTH = 400


def figure(report: Report) -> Figure | None:
    """Draw every finite variant with its interval, the dense model as a baseline, and a close-up where some lie far."""
    shown = [s for s in report.standings if math.isfinite(s.perplexity)]
    dense = report.data.dense.metrics.perplexity
    sparsities = [s.variant.metrics.sparsity for s in shown]
    if not shown or not math.isfinite(dense) or max(sparsities) - min(sparsities) < _APART:
        return None
    views = {"All variants": shown}
    near = [s for s in shown if s.ratio is not None and s.ratio <= _CLOSE]
    if 2 <= len(near) < len(shown):
        views[f"Close-up: up to {_CLOSE:g} times dense"] = near
    label = "Perplexity against achieved sparsity; the table holds the numbers."
    charts = [(title, to_svg(_chart(report, dense, some), label)) for title, some in views.items()]
    caption = (
        "Lower is better; bars are 95 % intervals over windows. Points at the same sparsity are set slightly apart."
    )
    left_out = [f"{s.variant.spec.name} ({fmt.perplexity(s.perplexity)})" for s in report.standings if s not in shown]
    caption += f" Not drawn: {', '.join(left_out)}." if left_out else ""
    return Figure(legend(report) + panels(charts, "two"), "Perplexity against sparsity", fmt.typeset(caption))


def _chart(report: Report, dense: float, shown: Sequence[Standing]) -> Spec:
    sparsities = [s.variant.metrics.sparsity for s in shown]
    pad = max((max(sparsities) - min(sparsities)) * 0.08, 0.02)
    span = max(sparsities) - min(sparsities) + 2 * pad
    values = []
    for standing, offset in zip(shown, _dodge(sparsities, span), strict=True):
        spec, interval = standing.variant.spec, standing.interval
        low, high = (interval.low, interval.high) if interval else (None, None)
        noise = f", 95 % interval {fmt.interval(interval, fmt.perplexity)}" if interval else ""
        text = f"{spec.method}, {spec.pattern_text}: {fmt.perplexity(standing.perplexity)}{noise}"
        values.append(
            {**named(spec), "x": standing.variant.metrics.sparsity + offset, "y": standing.perplexity}
            | {"low": low, "high": high, "t": f"{text} ({fmt.change(standing.ratio)})"}
        )
    extent = [dense, *(v[key] for v in values for key in ("y", "low", "high") if v[key] is not None)]
    # Room below the baseline for its name, which would lie under the points above it.
    extent.append(dense / (max(extent) / dense) ** 0.1)
    y = quantity("y", "perplexity", extent, label=",~f")
    x = quantity("x", "achieved sparsity", [min(sparsities) - pad, max(sparsities) + pad], label=".0%", log_from=1e9)
    x["axis"] |= {"grid": False, "domain": True, "ticks": True}
    ticks = sorted({round(value, 2) for value in sparsities})
    if all(b - a > pad for a, b in itertools.pairwise(ticks)):
        x["axis"]["values"] = ticks
    base = {"data": {"values": [{"y": dense, "t": f"dense: {fmt.perplexity(dense)}"}]}}
    name = {"type": "text", "align": "right", "dx": -4, "dy": 9, "color": INK, "fontSize": 11}
    series = {"color": colour(report.styles), "x": x}
    low_high = {"y": {**y, "field": "low"}, "y2": {"field": "high"}}
    return {
        "width": _WIDTH,
        "height": 290,
        "data": {"values": values},
        "layer": [
            {**base, "mark": DASHED, "encoding": {"y": y}},
            {**base, "mark": name, "encoding": {"y": y, "x": {"value": _WIDTH}, "text": {"field": "t"}}},
            {
                "transform": [{"filter": "!datum.nm"}],
                "mark": {"type": "line", "strokeWidth": 1.6},
                "encoding": {**series, "y": y},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.2},
                "encoding": {**series, **low_high},
            },
            *points(series | {"y": y}, report.styles, 56),
        ],
    }


def _dodge(xs: Sequence[float], span: float) -> list[float]:
    """Return offsets that set points of nearly equal x apart, so that their intervals do not hide each other.

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
