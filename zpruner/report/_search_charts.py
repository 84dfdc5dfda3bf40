"""Perplexity against evaluations, one panel per number of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from zpruner.report import _format as fmt
from zpruner.report._axes import quantity
from zpruner.report._charts import Panel
from zpruner.report._svg import to_svg
from zpruner.report._theme import COLOURS
from zpruner.search import SearchLog, fitness_curve
from zpruner.search.log import Evaluation

OPERATORS = {"initial": "c5", "random": "c7", "crossover": "c0", "mutation": "c2"}
"""How a formula came about -> its colour."""
_FAR = 4.0
"""Perplexities beyond this multiple of the best are not drawn: they would flatten the rest."""
_WIDTH = 400


def progress_panels(log: SearchLog, known: Mapping[str, float], names: Mapping[str, str]) -> list[Panel]:
    """Return a panel per rung: every formula measured there, the best so far, and on the highest the known methods.

    Args:
        log: of the search.
        known: method -> fitness on all windows.
        names: method -> how it is called on the page.
    """
    panels = []
    for rung in reversed(range(len(log.settings["rungs"]))):
        shown = [e for e in log.evaluations if e.rung == rung and e.fitness is not None]
        if not shown:
            continue
        top = rung == len(log.settings["rungs"]) - 1
        best = min(e.fitness for e in shown if e.fitness is not None)
        near = [e for e in shown if e.fitness is not None and e.fitness - best <= math.log(_FAR)]
        lines = {n: f for n, f in known.items() if f - best <= math.log(_FAR)} if top else {}
        windows = log.settings["rungs"][rung]
        title = f"{windows} window{'s' if windows != 1 else ''}: {len(shown)} formulas"
        if len(near) < len(shown):
            title += f", {len(shown) - len(near)} of them beyond {_FAR:g} times the best not drawn"
        label = f"Perplexity against evaluations on {windows} windows; the table holds the best."
        panels.append(Panel(title, to_svg(_spec(near, fitness_curve(log.evaluations, rung), lines, names, log), label)))
    return panels


def _spec(
    shown: list[Evaluation],
    curve: list[tuple[int, float]],
    known: Mapping[str, float],
    names: Mapping[str, str],
    log: SearchLog,
) -> dict[str, Any]:
    points = [
        {
            "x": e.index + 1,
            "y": math.exp(e.fitness),
            "operator": e.operator,
            "t": f"{e.formula}: {fmt.perplexity(math.exp(e.fitness))} ({e.operator}, generation {e.generation})",
        }
        for e in shown
        if e.fitness is not None
    ]
    last = len(log.evaluations)
    steps = [{"x": x, "y": math.exp(y)} for x, y in curve if any(p["x"] == x for p in points)]
    steps.append({"x": last, "y": steps[-1]["y"]})
    # Side by side, so that the names of lines close to each other can be read.
    lines = [
        {"y": math.exp(f), "at": _WIDTH - 4 - 98 * i, "t": f"{names.get(n, n)} {fmt.perplexity(math.exp(f))}"}
        for i, (n, f) in enumerate(known.items())
    ]
    across = {"field": "at", "type": "quantitative", "scale": None}
    values = [math.exp(e.fitness) for e in shown if e.fitness is not None] + [math.exp(f) for f in known.values()]
    y = quantity("y", "perplexity", values, label=",~f", log_from=2)
    x = quantity("x", "evaluations", [0, max(last, 2)], label=",d", log_from=math.inf)
    x["axis"] |= {"grid": False, "domain": True, "ticks": True}
    colour = {
        "field": "operator",
        "type": "nominal",
        "legend": None,
        "scale": {"domain": list(OPERATORS), "range": [COLOURS[name][0] for name in OPERATORS.values()]},
    }
    text = {"type": "text", "align": "right", "dy": -5, "color": COLOURS["mute"][0], "fontSize": 10.5}
    return {
        "width": _WIDTH,
        "height": 270,
        "layer": [
            {
                "data": {"values": lines},
                "mark": {"type": "rule", "color": COLOURS["mute"][0], "strokeDash": [5, 4]},
                "encoding": {"y": y},
            },
            {
                "data": {"values": lines},
                "mark": text,
                "encoding": {"y": y, "x": across, "text": {"field": "t"}},
            },
            {
                "data": {"values": steps},
                "mark": {"type": "line", "interpolate": "step-after", "color": COLOURS["ink"][0], "strokeWidth": 1.4},
                "encoding": {"x": x, "y": y},
            },
            {
                "data": {"values": points},
                "mark": {"type": "point", "filled": True, "size": 34, "opacity": 1, "strokeWidth": 0},
                "encoding": {"x": x, "y": y, "color": colour, "description": {"field": "t"}},
            },
        ],
    }
