"""Each method's perplexity against that of the dense model, one dot plot per sparsity."""

from __future__ import annotations

from collections.abc import Sequence

from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.marks import DASHED, MUTE, Spec, colour, named, points
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report, Standing
from zpruner.report.svg import to_svg

_WIDTH = 235


def figure(report: Report) -> Figure | None:
    """Draw the paired interval of every variant, the best first, its perplexity beside it."""
    charts = []
    for ranking in report.rankings:
        shown = [s for s in ranking.standings if s.ratio and s.ratio_interval]
        if shown:
            label = f"Perplexity relative to dense at {shown[0].variant.spec.sparsity}; the table holds the numbers."
            charts.append((shown[0].variant.spec.title, to_svg(_chart(report, shown), label)))
    if not charts:
        return None
    caption = (
        "With the paired 95 % interval: what makes a window hard for both models cancels out. Perplexities stand on "
        "the right; each panel has its own scale."
    )
    return Figure(panels(charts), "Change against dense, window by window", fmt.typeset(caption))


def _chart(report: Report, shown: Sequence[Standing]) -> Spec:
    values = []
    for standing in shown:
        assert standing.ratio is not None
        assert standing.ratio_interval is not None
        spec, low, high = standing.variant.spec, standing.ratio_interval.low, standing.ratio_interval.high
        noise = fmt.interval(standing.ratio_interval, fmt.change)
        text = f"{spec.method}: {fmt.change(standing.ratio)}, 95 % interval {noise}"
        values.append(
            {**named(spec), "x": standing.ratio - 1, "low": low - 1, "high": high - 1, "t": text}
            | {"perplexity": fmt.perplexity(standing.perplexity)}
        )
    extent = [v[key] for v in values for key in ("x", "low", "high")]
    logarithmic = min(extent) > 0 and max(extent) / min(extent) >= 3
    x = quantity("x", "change against dense", extent if logarithmic else [0.0, *extent], label="+,~%")
    axis = {"domain": False, "ticks": False}
    order = [v["method"] for v in values]
    y = {"field": "method", "type": "nominal", "title": None, "axis": axis, "sort": order}
    series = {"color": colour(report.styles), "y": y}
    number = {"type": "text", "align": "right", "dx": 44, "color": MUTE, "fontSize": 11}
    dense = {"data": {"values": [{"x": 0}]}, "mark": DASHED, "encoding": {"x": x}}
    return {
        "width": _WIDTH,
        "padding": {"left": 10, "top": 5, "right": 5, "bottom": 5},
        "height": {"step": 24},
        "data": {"values": values},
        "layer": [
            *([] if logarithmic else [dense]),
            {
                "mark": {"type": "rule", "strokeWidth": 1.6},
                "encoding": {**series, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
            },
            {"mark": number, "encoding": {"y": y, "x": {"value": _WIDTH}, "text": {"field": "perplexity"}}},
            *points(series | {"x": x}, report.styles, 56),
        ],
    }
