"""How much the masks of methods have in common, and where they cut the scores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from zpruner.artifacts.results import Histogram
from zpruner.evaluate.masks import jaccard
from zpruner.report._charts import Panel
from zpruner.report._svg import to_svg
from zpruner.report._theme import COLOURS, HEAT, styles
from zpruner.report.data import ReportData, Variant


@dataclass(frozen=True)
class Overlap:
    """Jaccard indices of the masks of one sparsity: rows and columns are methods; `chance` is that of random masks."""

    title: str
    methods: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    chance: str


def overlaps(data: ReportData) -> list[Overlap]:
    """Return one table per sparsity with at least two masks; each cell is its text and its colour step."""
    tables = []
    for name in data.sparsity_names:
        shown = [v for v in data.variants if v.spec.sparsity == name and v.evaluation.details.mask_sample]
        if len(shown) < 2:
            continue
        rows = tuple((v.spec.method, tuple(_cell(v, other) for other in shown)) for v in shown)
        kept = 1.0 - sum(v.evaluation.metrics.sparsity for v in shown) / len(shown)
        title = f"{shown[0].spec.pattern_text} · {name}"
        tables.append(Overlap(title, tuple(v.spec.method for v in shown), rows, f"{kept / (2 - kept):.2f}"))
    return tables


def _cell(variant: Variant, other: Variant) -> tuple[str, int]:
    if variant is other:
        return "1", len(HEAT) - 1
    index = jaccard(variant.evaluation.details.mask_sample, other.evaluation.details.mask_sample)
    return ("–", 0) if index is None else (f"{index:.2f}", min(len(HEAT) - 1, int(index * len(HEAT))))


def histogram_panels(data: ReportData) -> list[tuple[str, list[Panel]]]:
    """Return, per layer, one panel per method: its scores, those that one unstructured mask keeps and prunes apart.

    Of each method the first unstructured sparsity is drawn: an N:M mask cuts in every group of M elsewhere.
    """
    style = styles(data.method_names)
    chosen: dict[str, Variant] = {}
    for variant in data.variants:
        if variant.evaluation.details.score_histograms and not variant.spec.is_nm:
            chosen.setdefault(variant.spec.method, variant)
    layers = dict.fromkeys(h.layer for v in chosen.values() for h in v.evaluation.details.score_histograms)
    result = []
    for layer in layers:
        panels = []
        for method, variant in chosen.items():
            histogram = next((h for h in variant.evaluation.details.score_histograms if h.layer == layer), None)
            if histogram is not None:
                title = f"{method} at {variant.spec.pattern_text}"
                label = f"Scores of {layer} by {title}: kept weights coloured, pruned weights grey."
                panels.append(Panel(title, to_svg(_histogram(histogram, style[method].light), label)))
        result.append((layer, panels))
    return result


def _histogram(histogram: Histogram, colour: str) -> dict[str, Any]:
    bars = []
    edges = histogram.edges
    for low, high, kept, pruned in zip(edges[:-1], edges[1:], histogram.kept, histogram.pruned, strict=True):
        text = f"score 1e{low:.2f} to 1e{high:.2f}: {kept:,.0f} kept, {pruned:,.0f} pruned"
        bars += [
            {"x": low, "x2": high, "y": 0, "y2": pruned, "part": "pruned", "t": text},
            {"x": low, "x2": high, "y": pruned, "y2": pruned + kept, "part": "kept", "t": text},
        ]
    first, last = math.ceil(edges[0]), math.floor(edges[-1])
    ticks = list(range(first, last + 1, max(1, (last - first) // 4)))
    axis = {"title": "score", "grid": False, "values": ticks, "labelExpr": "'1e' + datum.value"}
    scale = {"domain": [edges[0], edges[-1]], "nice": False, "zero": False}
    colours = {"domain": ["pruned", "kept"], "range": [COLOURS["rule"][0], colour]}
    return {
        "width": 185,
        "height": 100,
        "data": {"values": [bar for bar in bars if bar["y"] != bar["y2"]]},
        "mark": {"type": "rect"},
        "encoding": {
            "x": {"field": "x", "type": "quantitative", "axis": axis, "scale": scale},
            "x2": {"field": "x2"},
            "y": {
                "field": "y",
                "type": "quantitative",
                "axis": {"title": "weights", "tickCount": 3, "format": "~s", "domain": False, "ticks": False},
            },
            "y2": {"field": "y2"},
            "color": {"field": "part", "type": "nominal", "legend": None, "scale": colours},
            "description": {"field": "t"},
        },
    }
