"""What every model would say after the same words, side by side."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from zpruner.report.marks import DENSE_SWATCH, swatch_of
from zpruner.report.page import Figure
from zpruner.report.ranking import Report

_CONTROL = str.maketrans({"\n": "↵", "\r": "↵", "\t": "→"})


def figure(report: Report) -> Figure | None:
    """Return the end of the first window and each model's choices there, those marked that dense does not make."""
    dense = report.data.dense.details.sample
    shown = [(v.spec, v.details.sample) for v in report.data.variants if v.details.sample is not None]
    if dense is None or not shown:
        return None
    rows = _row(Markup(), "the text", dense.text, dense.text) + _row(Markup(), "dense", dense.choices, dense.choices)
    for spec, sample in shown:
        rows += _row(swatch_of(report, spec), spec.name, sample.choices, dense.choices)
    caption = (
        f"At each of the last {len(dense.text)} places of the first window, the token that a model ranks first after "
        "the words before it. Marked: another one than the dense model's."
    )
    return Figure(Markup('<dl class="sample">{}</dl>').format(rows), "The same words, continued", caption)


def continued(report: Report) -> Figure | None:
    """Return what every model says after the prompt of params.yaml; None where none was asked."""
    shown = report.data.spoken
    if not shown:
        return None
    rows = Markup()
    for one in shown:
        mark = DENSE_SWATCH if one.variant is None else swatch_of(report, one.variant.spec)
        rows += Markup("<dt>{}{}</dt><dd>{}</dd>\n").format(mark, one.name, one.said.text.strip().translate(_CONTROL))
    caption = f"After “{shown[0].said.prompt}”, the most likely token at each step."
    return Figure(Markup('<dl class="sample">{}</dl>').format(rows), "The same prompt", caption)


def _row(mark: Markup, name: str, tokens: Sequence[str], reference: Sequence[str]) -> Markup:
    words = Markup(" ").join(
        Markup("<span>{}</span>" if token == other else "<mark>{}</mark>").format(token.translate(_CONTROL))
        for token, other in zip(tokens, reference, strict=True)
    )
    return Markup("<dt>{}{}</dt><dd>{}</dd>\n").format(mark, name, words)
