"""Perplexity against what it costs: bytes on disk, bytes read per token, and speed where it was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from zpruner.advice import Offer, frontier
from zpruner.report import format as fmt
from zpruner.report.axes import quantity
from zpruner.report.figures.offers import PRICES, Price
from zpruner.report.marks import INK, MUTE, PAPER, Spec, colour, legend, named, points
from zpruner.report.offers import offers
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report
from zpruner.report.svg import to_svg

_CLOSE = 3.0
"""Variants beyond this multiple of dense would flatten the others: where there are some, the table alone has them."""
_WIDTH = 310


def figure(report: Report) -> Figure | None:
    """Draw one panel per cost that tells models apart; None without a variant that does."""
    found = offers(report.data)
    if not found:
        return None
    dense = found[0]
    near = [offer for offer in found if offer.perplexity <= _CLOSE * dense.perplexity]
    shown = near if len(near) > 2 else list(found)
    charts = []
    for cost in PRICES:
        priced = [offer for offer in shown if cost.of(offer) is not None]
        if len({cost.of(offer) for offer in priced}) > 1:
            label = f"Perplexity against {cost.axis}; the table holds the numbers."
            charts.append((f"Against {cost.axis}", to_svg(_chart(report, cost, priced), label)))
    if not charts:
        return None
    caption = (
        "Lower and further left is better; bars are 95 % intervals over windows, and points at one cost are set "
        "slightly apart. The line joins the Pareto-optimal models: no other predicts as well at that cost or less."
    )
    drawn = {offer.variant for offer in shown}
    others = [v for v in report.data.variants if v.spec.name not in drawn]
    left_out = ", ".join(f"{v.spec.name} ({fmt.perplexity(v.metrics.perplexity)})" for v in others)
    caption += f" Not drawn: {left_out}." if left_out else ""
    body = legend(report) + panels(charts, "two" if len(charts) < 3 else "")
    return Figure(body, "Perplexity against cost", fmt.typeset(caption))


def _chart(report: Report, cost: Price, shown: Sequence[Offer]) -> Spec:
    specs = {variant.spec.name: variant.spec for variant in report.data.variants}
    values, dense = [], shown[0]
    prices = [_price(cost, offer) for offer in shown]
    for offer, offset in zip(shown, _dodge(prices), strict=True):
        low, high = (offer.interval.low, offer.interval.high) if offer.interval else (None, None)
        place = {"x": _price(cost, offer) + offset, "y": offer.perplexity, "low": low, "high": high}
        noise = f", 95 % interval {fmt.interval(offer.interval, fmt.perplexity)}" if offer.interval else ""
        text = (
            f"{offer.label}: {fmt.perplexity(offer.perplexity)}{noise}; {cost.title} {cost.text(_price(cost, offer))}"
        )
        if offer.variant in specs:
            values.append({**named(specs[offer.variant]), **place, "t": text})
    best = [{"x": _price(cost, offer), "y": offer.perplexity} for offer in frontier(shown, cost.of)]
    extent = [dense.perplexity, *(v[key] for v in values for key in ("y", "low", "high") if v[key] is not None)]
    base: Spec = {"x": _price(cost, dense), "y": dense.perplexity, "t": f"dense: {fmt.perplexity(dense.perplexity)}"}
    y = quantity("y", "perplexity", extent, label=",~f")
    x = quantity("x", cost.axis, [base["x"], *(v["x"] for v in values)], label=",~f")
    x["axis"] |= {"grid": False, "domain": True, "ticks": True}
    x["scale"]["zero"] = False
    series = {"color": colour(report.styles), "x": x}
    ink = {"color": INK, "size": 60, "filled": True}
    halo = {"type": "text", "align": "right", "dx": -8, "dy": 4, "fontSize": 11, "color": INK}
    return {
        "width": _WIDTH,
        "height": 290,
        "data": {"values": values},
        "layer": [
            {
                "data": {"values": best},
                "mark": {"type": "line", "color": MUTE, "strokeWidth": 1.2, "interpolate": "step-after"},
                "encoding": {"x": x, "y": y, "order": {"field": "x"}},
            },
            {
                "transform": [{"filter": "isValid(datum.low)"}],
                "mark": {"type": "rule", "strokeWidth": 1.2},
                "encoding": {**series, "y": {**y, "field": "low"}, "y2": {"field": "high"}},
            },
            {
                "data": {"values": [base]},
                "encoding": {"x": x, "y": y},
                "layer": [
                    {"mark": {"type": "point", **ink, "stroke": PAPER}, "encoding": {"description": {"field": "t"}}},
                    {"mark": halo, "encoding": {"text": {"value": "dense"}}},
                ],
            },
            *points(series | {"y": y}, report.styles, 56),
        ],
    }


def _dodge(prices: Sequence[float]) -> list[float]:
    """Return offsets that set points of nearly equal price apart, so that their intervals do not hide each other."""
    step = 6 * (max(prices) - min(prices)) / _WIDTH
    offsets = [0.0] * len(prices)
    order = sorted(range(len(prices)), key=lambda i: prices[i])
    for _, members in itertools.groupby(order, key=lambda i: round(prices[i] / step)):
        group = list(members)
        for rank, i in enumerate(group):
            offsets[i] = (rank - (len(group) - 1) / 2) * step
    return offsets


def _price(cost: Price, offer: Offer) -> float:
    price = cost.of(offer)
    assert price is not None
    return price
