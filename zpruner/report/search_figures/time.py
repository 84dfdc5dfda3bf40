"""What the evaluations' time went to."""

from __future__ import annotations

from markupsafe import Markup

from zpruner.report import format as fmt
from zpruner.report.page import Figure, note
from zpruner.report.search_data import SearchData


def figure(data: SearchData) -> Figure:
    """Return the share of every part of an evaluation."""
    totals: dict[str, float] = {}
    for evaluation in data.log.evaluations:
        for part, seconds in evaluation.parts.items():
            totals[part] = totals.get(part, 0.0) + seconds
    whole = sum(totals.values()) or 1.0
    text = ", ".join(f"{part} {fmt.percent(seconds / whole)}" for part, seconds in totals.items())
    small = (
        "Shares of all evaluations: scores of every layer, masks from them, masked weights written into the model, and "
        "the forward passes that measure perplexity."
    )
    return Figure(Markup("<p>{}.</p>{}").format(fmt.typeset(text), note(small)))
