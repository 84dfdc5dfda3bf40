"""Where masks cut the scores of two layers, on axes that methods share: score relative to the cut, share of weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from zpruner.artifacts.results import Histogram
from zpruner.report import format as fmt
from zpruner.report.data import Variant
from zpruner.report.marks import RULE, Spec
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report
from zpruner.report.svg import to_svg

_BELOW = -3.0
"""Decades below the cut that are drawn: what lies lower is pruned by every method."""
_TAIL = 1e-3
"""The share of weights at either end that is not drawn, so that outliers do not stretch the axis."""


@dataclass(frozen=True)
class _Panel:
    """A histogram whose edges are decades from the cut and whose heights are shares of the weights per decade."""

    variant: Variant
    edges: tuple[float, ...]
    kept: tuple[float, ...]
    pruned: tuple[float, ...]


def figure(report: Report) -> Figure | None:
    """Return, per layer, one panel per method: of its first mask that is not N:M, which would cut groups apart."""
    chosen: dict[str, Variant] = {}
    for variant in report.data.variants:
        if variant.details.score_histograms and not variant.spec.is_nm:
            chosen.setdefault(variant.spec.method, variant)
    layers: dict[str, list[_Panel]] = {}
    for variant in chosen.values():
        for histogram in variant.details.score_histograms:
            layers.setdefault(histogram.layer, []).append(_panel(variant, histogram))
    if not layers:
        return None
    body = Markup().join(
        Markup("<h3><code>{}</code></h3>\n{}").format(layer, _row(report, shown)) for layer, shown in layers.items()
    )
    caption = (
        "Grey weights are pruned, coloured ones kept; scores are relative to the cut, and both axes are the same for "
        "all methods. One threshold for the layer cuts straight; a cut per row or a refined mask overlaps."
    )
    return Figure(body, "Scores and their cut", caption)


def _panel(variant: Variant, histogram: Histogram) -> _Panel:
    edges, cut = histogram.edges, _cut(histogram)
    total = sum(histogram.kept) + sum(histogram.pruned)
    scale = [1 / (total * (high - low)) for low, high in itertools.pairwise(edges)]
    kept, pruned = (
        tuple(count * each for count, each in zip(counts, scale, strict=True))
        for counts in (histogram.kept, histogram.pruned)
    )
    return _Panel(variant, tuple(edge - cut for edge in edges), kept, pruned)


def _cut(histogram: Histogram) -> float:
    """Return the decimal logarithm of the score below which as many weights lie as are pruned."""
    left = float(sum(histogram.pruned))
    for i, count in enumerate(k + p for k, p in zip(histogram.kept, histogram.pruned, strict=True)):
        if count and left <= count:
            return histogram.edges[i] + left / count * (histogram.edges[i + 1] - histogram.edges[i])
        left -= count
    return histogram.edges[-1]


def _row(report: Report, shown: Sequence[_Panel]) -> Markup:
    lows, highs = zip(*(_middle(panel) for panel in shown), strict=True)
    across = [max(_BELOW, min(lows)), max(highs)]
    # The first bin also holds all smaller scores, zeros included: it must not flatten the others.
    top = max(k + p for panel in shown for k, p in zip(panel.kept[1:], panel.pruned[1:], strict=True))
    charts = []
    for panel in shown:
        spec = panel.variant.spec
        title = f"{spec.method} at {spec.pattern_text}"
        label = f"Scores by {title}: kept weights coloured, pruned weights grey."
        charts.append((title, to_svg(_chart(panel, report.styles[spec.method].light, across, top), label)))
    return panels(charts, "small")


def _middle(panel: _Panel) -> tuple[float, float]:
    """Return between which edges all but the outermost thousandths of the weights lie."""
    shares = [
        (kept + pruned) * (high - low)
        for (low, high), kept, pruned in zip(itertools.pairwise(panel.edges), panel.kept, panel.pruned, strict=True)
    ]
    below = list(itertools.accumulate(shares, initial=0.0))
    low = max(edge for edge, share in zip(panel.edges, below, strict=True) if share <= _TAIL)
    high = min(edge for edge, share in zip(panel.edges, below, strict=True) if share >= 1 - _TAIL)
    return low, high


def _chart(panel: _Panel, colour: str, across: Sequence[float], top: float) -> Spec:
    bars = []
    for (low, high), kept, pruned in zip(itertools.pairwise(panel.edges), panel.kept, panel.pruned, strict=True):
        start, end = max(low, across[0]), min(high, across[1])
        if kept + pruned and start < end:
            shares = f"{fmt.percent(kept * (high - low))} kept, {fmt.percent(pruned * (high - low))} pruned"
            place = {"x": start, "x2": end, "t": f"{10**low:.2g} to {10**high:.2g} times the cut: {shares}"}
            split, height = min(pruned, top), min(pruned + kept, top)
            bars += [{**place, "y": 0, "y2": split, "part": "pruned"}] if split else []
            bars += [{**place, "y": split, "y2": height, "part": "kept"}] if height > split else []
    ticks = list(range(math.ceil(across[0]), math.floor(across[1]) + 1))
    axis = {"title": "score / cut", "grid": False, "values": ticks, "labelExpr": "format(pow(10, datum.value), '~g')"}
    heights = {"title": "weights per 1/10 decade", "tickCount": 3, "domain": False, "ticks": False}
    heights["labelExpr"] = "format(datum.value / 10, '.0%')"
    return {
        "width": 185,
        "height": 100,
        "data": {"values": bars},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "axis": axis, "scale": {"domain": across, "nice": False}},
            "x2": {"field": "x2"},
            "y": {"field": "y", "type": "quantitative", "axis": heights, "scale": {"domain": [0, top]}},
            "y2": {"field": "y2"},
            "color": {
                "field": "part",
                "type": "nominal",
                "legend": None,
                "scale": {"domain": ["pruned", "kept"], "range": [RULE, colour]},
            },
            "description": {"field": "t"},
        },
    }
