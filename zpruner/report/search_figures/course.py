"""Perplexity against evaluations, one panel per number of windows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.page import Figure, panels
from zpruner.report.search_data import SearchData, name_of
from zpruner.report.svg import to_svg
from zpruner.report.theme import COLOURS
from zpruner.search import fitness_curve
from zpruner.search.log import Evaluation

OPERATORS = {"initial": "c5", "random": "c7", "crossover": "c0", "mutation": "c2"}
"""How a formula came about -> its colour."""
_FAR = 4.0
"""Perplexities beyond this multiple of the best are not drawn: they would flatten the rest."""
_WIDTH = 400


def figure(data: SearchData) -> Figure:
    """Draw every formula measured, the best so far, and on the highest rung the known methods."""
    rungs = data.log.settings["rungs"]
    charts = []
    for rung in reversed(range(len(rungs))):
        fitnesses = [e.fitness for e in data.log.evaluations if e.rung == rung and e.fitness is not None]
        if not fitnesses:
            continue
        limit = min(fitnesses) + math.log(_FAR)
        near = [e for e in data.log.evaluations if e.rung == rung and e.fitness is not None and e.fitness <= limit]
        known = {name: f for name, f in data.known.items() if f <= limit} if rung == len(rungs) - 1 else {}
        windows = f"{rungs[rung]} window{'s' if rungs[rung] != 1 else ''}"
        title = f"{windows}: {len(fitnesses)} formulas"
        if len(near) < len(fitnesses):
            title += f", {len(fitnesses) - len(near)} of them beyond {_FAR:g} times the best not drawn"
        label = f"Perplexity against evaluations on {windows}; the table holds the best."
        charts.append((title, to_svg(_spec(near, fitness_curve(data.log.evaluations, rung), known, data), label)))
    caption = (
        "Lower is better; the line is the best so far, dashed are known methods. Only the best of all measured on few "
        "windows so far are measured on more."
    )
    items = Markup().join(
        Markup('<li><i class="dot" style="background:var(--{})"></i>{}</li>').format(colour, name)
        for name, colour in OPERATORS.items()
    )
    legend = Markup('<ul class="legend" aria-label="Legend">{}</ul>\n').format(items)
    return Figure(legend + panels(charts, "two"), "Perplexity against evaluations", caption)


def _spec(
    shown: list[Evaluation], curve: list[tuple[int, float]], known: Mapping[str, float], data: SearchData
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
    last = len(data.log.evaluations)
    steps = [{"x": x, "y": math.exp(y)} for x, y in curve if any(p["x"] == x for p in points)]
    steps.append({"x": last, "y": steps[-1]["y"]})
    # Side by side, so that the names of lines close to each other can be read.
    lines = [
        {"y": math.exp(f), "at": _WIDTH - 4 - 98 * i, "t": f"{name_of(n)} {fmt.perplexity(math.exp(f))}"}
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
            {"data": {"values": lines}, "mark": text, "encoding": {"y": y, "x": across, "text": {"field": "t"}}},
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
