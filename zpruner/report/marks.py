"""How methods look: swatches and legends on the page, colours and points in charts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from zpruner.report.data import VariantSpec
from zpruner.report.ranking import Report
from zpruner.report.theme import COLOURS, Style

Spec = dict[str, Any]
"""A Vega-Lite specification, or a part of one."""
INK, MUTE, PAPER, RULE = (COLOURS[name][0] for name in ("ink", "mute", "paper", "rule"))
DASHED: Spec = {"type": "rule", "color": INK, "strokeDash": [5, 4]}
"""The line of the dense model."""
DENSE_SWATCH = Markup(
    '<svg class="sw" viewBox="-6 -6 12 12" aria-hidden="true">'
    '<path class="s-ink" d="M-6,0h12" stroke-dasharray="3 2" stroke-width="1.5"/></svg>'
)


def swatch(style: Style, hollow: bool = False) -> Markup:
    """Return a method's mark: filled where unstructured, hollow where N:M."""
    fill, width = ("paper", 1.5) if hollow else (style.colour, 0.5)
    return Markup(
        '<svg class="sw" viewBox="-6 -6 12 12" aria-hidden="true">'
        '<path class="f-{} s-{}" stroke-width="{}" d="{}"/></svg>'
    ).format(fill, style.colour, width, style.path)


def swatch_of(report: Report, spec: VariantSpec) -> Markup:
    """Return the mark of a variant."""
    return swatch(report.styles[spec.method], spec.is_nm)


def legend(report: Report) -> Markup:
    """Return the mark of every method."""
    items = Markup().join(Markup("<li>{}{}</li>").format(swatch(style), name) for name, style in report.styles.items())
    specs = [variant.spec for variant in report.data.variants]
    if len({spec.is_nm for spec in specs}) > 1:
        filled = "unstructured" if all(s.is_nm or s.kind == "unstructured" for s in specs) else "not N:M"
        items += Markup('<li class="how">filled: {}, hollow: N:M</li>').format(filled)
    return Markup('<ul class="legend" aria-label="Legend">{}</ul>\n').format(items)


def named(spec: VariantSpec) -> Spec:
    """Return what `points` and `colour` need of a variant."""
    return {"method": spec.method, "nm": spec.is_nm}


def colour(styles: Mapping[str, Style]) -> Spec:
    """Return the colour channel of methods."""
    scale = {"domain": list(styles), "range": [style.light for style in styles.values()]}
    return {"field": "method", "type": "nominal", "legend": None, "scale": scale}


def points(encoding: Spec, styles: Mapping[str, Style], size: int) -> list[Spec]:
    """Return layers of points with tooltips: shape by method, filled where unstructured, hollow where N:M."""
    shapes = {"domain": list(styles), "range": [style.shape for style in styles.values()]}
    shape = {"field": "method", "type": "nominal", "legend": None, "scale": shapes}
    channels = {**encoding, "shape": shape, "description": {"field": "t"}}
    hollow = {key: value for key, value in channels.items() if key != "color"} | {"stroke": encoding["color"]}
    mark = {"type": "point", "size": size, "opacity": 1}
    return [
        {
            "transform": [{"filter": "!datum.nm"}],
            "mark": {**mark, "strokeWidth": 0, "filled": True},
            "encoding": channels,
        },
        {
            "transform": [{"filter": "datum.nm"}],
            "mark": {**mark, "strokeWidth": 1.6, "fill": PAPER},
            "encoding": hollow,
        },
    ]
