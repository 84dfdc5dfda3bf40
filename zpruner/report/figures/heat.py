"""Layer errors as heat maps of blocks x layer kinds, coloured by rank so that differences show."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from zpruner.artifacts.results import Layer
from zpruner.report import format as fmt
from zpruner.report.data import Variant
from zpruner.report.figures.blocks import UNIFORM, aggregate
from zpruner.report.marks import swatch
from zpruner.report.page import Figure
from zpruner.report.ranking import Report
from zpruner.report.theme import HEAT

Cells = Mapping[tuple[str, int], float]
"""(kind, block) -> value."""
Measure = Callable[[Sequence[Layer]], float | None]
"""Of the layers that share a cell; None: nothing to show."""


def layer_error(report: Report) -> Figure | None:
    """Return one map per variant."""
    caption = (
        "Rows are kinds of layers, columns decoder blocks; darker is worse. Each shade holds a tenth of all layers of "
        "its sparsity, so that an outlier hides no difference. Point at a cell, or focus a map and use the arrow keys, "
        "to read its number."
    )
    return _figure(report, lambda layers: aggregate(layers)[1], fmt.error, "Layer error, layer by layer", caption)


def sparsity(report: Report) -> Figure | None:
    """Return one map per variant, of the sparsities that methods spread unevenly."""
    caption = "Share of zeros in every layer; each shade holds a tenth of all layers of its sparsity."
    return _figure(
        report, lambda layers: aggregate(layers)[0], fmt.percent, "Achieved sparsity, layer by layer", caption, UNIFORM
    )


def shrinkage(report: Report) -> Figure | None:
    """Return one map per variant, of what `shrinkage: auto` came to in every layer."""
    caption = (
        "Share of each entry of a Hessian's diagonal that was added to it: 0.2, and more where updates found on half "
        "the calibration do not hold on the other, as where a layer has more inputs than tokens can tell apart."
    )
    return _figure(
        report,
        _largest(lambda layer: layer.shrinkage),
        fmt.error,
        "Shrinkage that chose itself, layer by layer",
        caption,
    )


def damping(report: Report) -> Figure | None:
    """Return one map per variant, of what `damping: auto` came to in every layer."""
    caption = (
        "Share of the mean of a Hessian's diagonal that was added to it: 0.1, and more where updates found on half the "
        "calibration do not hold on the other."
    )
    return _figure(
        report, _largest(lambda layer: layer.damping), fmt.error, "Damping that chose itself, layer by layer", caption
    )


def share(report: Report) -> Figure | None:
    """Return one map per variant, of what the `share: auto` of a correction came to in every layer."""
    caption = (
        "Share of the correction for earlier blocks that was made: 0.3, and less where one found on half the "
        "calibration makes up for less of the other."
    )
    return _figure(
        report,
        _largest(lambda layer: layer.share),
        fmt.error,
        "Corrections that chose their share, layer by layer",
        caption,
    )


def _largest(read: Callable[[Layer], float | None]) -> Measure:
    """Return what gives the largest value of a setting that chose itself in any of some layers."""
    return lambda layers: max((value for layer in layers if (value := read(layer)) is not None), default=None)


def _figure(
    report: Report,
    measure: Measure,
    show: Callable[[float], str],
    title: str,
    caption: str,
    even: float = -1.0,
) -> Figure | None:
    """Return maps of what `measure` makes of layers, but not where all of it lies within `even`."""
    groups = Markup()
    for variants in report.data.by_sparsity.values():
        maps = [(variant, _cells(variant.details.layers, measure)) for variant in variants]
        maps = [(variant, cells) for variant, cells in maps if cells]
        values = sorted(value for _, cells in maps for value in cells.values() if math.isfinite(value))
        if not values or values[-1] - values[0] < even:
            continue
        edges = [values[len(values) * i // len(HEAT)] for i in range(1, len(HEAT))]
        tables = Markup().join(_map(report, variant, cells, edges, show) for variant, cells in maps)
        groups += Markup('<details{}><summary>{} {}</summary>\n<div class="maps">{}</div></details>\n').format(
            "" if groups else Markup(" open"), fmt.typeset(variants[0].spec.title), _scale(values, show), tables
        )
    return Figure(groups, title, caption) if groups else None


def _cells(layers: Sequence[Layer], measure: Measure) -> Cells:
    # Numbered modules inside a block (experts) share a row, or a mixture model would have hundreds.
    members: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", layer.kind)
        members.setdefault((kind, layer.block), []).append(layer)
    measured = {place: measure(group) for place, group in members.items()}
    return {place: value for place, value in measured.items() if value is not None}


def _scale(values: Sequence[float], show: Callable[[float], str]) -> Markup:
    steps = Markup().join(Markup('<i class="h{}"></i>').format(i) for i in range(len(HEAT)))
    low, middle, high = (fmt.typeset(show(values[i])) for i in (0, len(values) // 2, -1))
    return Markup(
        '<span class="scale">{} <span class="steps" aria-hidden="true">{}</span> {} (median {})</span>'
    ).format(low, steps, high, middle)


def _map(
    report: Report, variant: Variant, cells: Cells, edges: Sequence[float], show: Callable[[float], str]
) -> Markup:
    blocks = sorted({block for _, block in cells})
    every = 5 if len(blocks) <= 45 else 10
    heads = Markup().join(
        Markup('<th scope="col"{}>{}</th>').format(Markup(' class="q"') if block % every else "", block)
        for block in blocks
    )
    rows = Markup()
    for kind in dict.fromkeys(kind for kind, _ in cells):
        row = Markup()
        for block in blocks:
            value = cells.get((kind, block))
            step = len(HEAT) - 1 if value is None or not math.isfinite(value) else bisect_right(edges, value)
            cell = '<td class="h{}">{}</td>' if value is not None else "<td></td>"
            row += Markup(cell).format(step, "" if value is None else show(value))
        rows += Markup('<tr><th scope="row">{}</th>{}</tr>\n').format(kind, row)
    return Markup(
        '<table class="hm" tabindex="0"><caption>{}{}</caption>\n<thead><tr><td></td>{}</tr></thead>\n'
        "<tbody>{}</tbody></table>\n"
    ).format(swatch(report.styles[variant.spec.method]), variant.spec.method, heads, rows)
