"""Scales and ticks: logarithmic where values span a factor of three, with round numbers on the axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

_SERIES = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


def quantity(
    field: str, title: str | None, values: Sequence[float], *, label: str = "~f", grid: bool = True, log_from: float = 3
) -> dict[str, Any]:
    """Return the encoding of a positional channel.

    Args:
        field: the data field.
        title: axis title, None for none.
        values: everything to be shown, to choose scale and ticks by.
        label: d3 number format of the labels.
        grid: whether to draw grid lines.
        log_from: ratio of largest to smallest value from which the scale is logarithmic.
    """
    low, high = min(values), max(values)
    axis: dict[str, Any] = {"title": title, "grid": grid, "domain": not grid, "ticks": not grid, "format": label}
    if low > 0 and high / low >= log_from:
        margin = (high / low) ** 0.04
        domain = [low / margin, high * margin]
        axis["values"] = log_ticks(*domain)
        scale: dict[str, Any] = {"type": "log", "domain": domain, "nice": False}
    else:
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.05
        scale = {"domain": [low - margin, high + margin], "nice": False}
        axis["tickCount"] = 5
    return {"field": field, "type": "quantitative", "scale": scale, "axis": axis}


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers in [low, high]: the sparsest 1-2-5-like series that gives at least four."""
    ticks: list[float] = []
    for series in _SERIES:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [float(f"{m}e{d}") for d in decades for m in series if low <= float(f"{m}e{d}") <= high]
        if len(ticks) >= 4:
            break
    return ticks
