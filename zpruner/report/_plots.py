"""Data for `dvc plots`: plain JSON lists, non-finite numbers as null."""

from __future__ import annotations

import math

from zpruner.artifacts.results import Layer
from zpruner.report.data import ReportData


def perplexity_points(data: ReportData) -> list[dict[str, str | float | None]]:
    """Return one point per variant, and dense at sparsity 0."""
    points = [("dense", "0", 0.0, data.dense.metrics.perplexity)]
    points += [
        (v.spec.method, v.spec.pattern, v.evaluation.metrics.sparsity, v.evaluation.metrics.perplexity)
        for v in data.variants
    ]
    return [
        {"method": method, "pattern": pattern, "sparsity": sparsity, "perplexity": finite(perplexity)}
        for method, pattern, sparsity, perplexity in points
    ]


def layer_points(data: ReportData) -> list[dict[str, str | int | float | None]]:
    """Return one point per variant and decoder block."""
    return [
        {"method_sparsity": v.spec.name, "block": block, "layer_error": finite(error), "sparsity": sparsity}
        for v in data.variants
        for block, sparsity, error in by_block(v.evaluation.details.layers)
    ]


def by_block(layers: tuple[Layer, ...]) -> list[tuple[int, float, float]]:
    """Return block, sparsity (over all weights of the block) and layer error (mean over its layers), in order."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.block, []).append(layer)
    return [(block, *aggregate(groups[block])) for block in sorted(groups)]


def aggregate(layers: list[Layer]) -> tuple[float, float]:
    """Return the sparsity over all weights and the mean layer error of some layers."""
    weights = sum(layer.weights for layer in layers)
    zeros = sum(layer.sparsity * layer.weights for layer in layers)
    return zeros / weights if weights else 0.0, sum(layer.layer_error for layer in layers) / len(layers)


def finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinity."""
    return value if math.isfinite(value) else None
