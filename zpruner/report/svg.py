"""Vega-Lite specifications to SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree as ET

import vl_convert
from markupsafe import Markup

from zpruner.report.theme import COLOURS

_SVG = "{http://www.w3.org/2000/svg}"
_CLASS = {light: name for name, (light, _) in COLOURS.items()}
_DROPPED = ("role", "aria-roledescription", "aria-hidden", "aria-label", "class", "font-family", "pointer-events")
_GEOMETRY = ("transform", "d", "x", "y", "x2", "y2", "width", "height")

CONFIG: dict[str, Any] = {
    "background": None,
    "font": "sans-serif",
    "view": {"stroke": None},
    # Only marks with a `description` of their own get a tooltip.
    **{mark: {"aria": False} for mark in ("line", "rule", "text")},
    "axis": {
        "labelColor": COLOURS["mute"][0],
        "titleColor": COLOURS["mute"][0],
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "gridColor": COLOURS["rule"][0],
        "domainColor": COLOURS["rule"][0],
        "tickColor": COLOURS["rule"][0],
        "tickSize": 4,
        "labelPadding": 4,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
    },
}


def to_svg(spec: dict[str, Any], label: str) -> Markup:
    """Render a specification offline.

    The text of a mark's `description` becomes the attribute `data-t`, which the page shows as a tooltip; to assistive
    software the chart is one image called `label`, because a table holds the same numbers.

    Args:
        spec: Vega-Lite without `config`; colours are the light values of `theme.COLOURS`.
        label: what the chart shows.
    """
    source = vl_convert.vegalite_to_svg({**spec, "config": CONFIG}, allowed_base_urls=[])
    root = ET.fromstring(source)
    _prune(root)
    for element in root.iter():
        _restyle(element)
    root.tag = "svg"
    view = root.get("viewBox", "")
    root.attrib = {"viewBox": view, "width": view.split()[2], "class": "chart", "role": "img", "aria-label": label}
    return Markup(ET.tostring(root, encoding="unicode"))


def _prune(parent: ET.Element) -> None:
    """Drop invisible elements: empty paths and texts, labels that Vega hid because they overlap."""
    for child in list(parent):
        _prune(child)
        tag = child.tag.removeprefix(_SVG)
        empty_text = tag == "text" and not (child.text or "").strip()
        backdrop = tag == "path" and child.get("class") in ("background", "foreground")
        if empty_text or backdrop or child.get("opacity") == "0" or (tag == "g" and len(child) == 0):
            parent.remove(child)


def _restyle(element: ET.Element) -> None:
    element.tag = element.tag.removeprefix(_SVG)
    tooltip = element.get("aria-label") if element.get("role") == "graphics-symbol" and len(element) == 0 else None
    classes = []
    for paint, letter in (("fill", "f"), ("stroke", "s")):
        if (name := _CLASS.get(element.get(paint, ""))) is not None:
            classes.append(f"{letter}-{name}")
            del element.attrib[paint]
    for key in _DROPPED:
        element.attrib.pop(key, None)
    if element.get("opacity") == "1":
        del element.attrib["opacity"]
    for key in _GEOMETRY:
        if key in element.attrib:
            element.set(key, re.sub(r"-?\d+\.\d+(e-?\d+)?", _rounded, element.attrib[key]))
    if classes:
        element.set("class", " ".join(classes))
    if tooltip:
        element.set("data-t", tooltip)


def _rounded(number: re.Match[str]) -> str:
    return f"{round(float(number[0]), 2) + 0.0:g}"
