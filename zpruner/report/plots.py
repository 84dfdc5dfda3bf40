"""Data for `dvc plots`: plain JSON lists, non-finite numbers as null."""

from __future__ import annotations

import math

from zpruner.report.data import ReportData
from zpruner.report.figures.blocks import by_block


def perplexity_points(data: ReportData) -> list[dict[str, str | float | None]]:
    """Return one point per variant, and dense at sparsity 0."""
    points = [("dense", "0", 0.0, data.dense.metrics.perplexity)]
    points += [(v.spec.method, v.spec.pattern, v.metrics.sparsity, v.metrics.perplexity) for v in data.variants]
    return [
        {"method": method, "pattern": pattern, "sparsity": sparsity, "perplexity": finite(perplexity)}
        for method, pattern, sparsity, perplexity in points
    ]


def layer_points(data: ReportData) -> list[dict[str, str | int | float | None]]:
    """Return one point per variant and decoder block."""
    return [
        {"method_sparsity": v.spec.name, "block": block, "layer_error": finite(error), "sparsity": sparsity}
        for v in data.variants
        for block, (sparsity, error) in by_block(v.details.layers).items()
    ]


def finite(value: float) -> float | None:
    """Return the value, or None for NaN and infinity."""
    return value if math.isfinite(value) else None
