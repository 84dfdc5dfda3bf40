"""Colours and shapes, once for page and charts. A colour stands in a chart as its light value and becomes a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1c2127", "#e7e5df"),
    "mute": ("#5a626b", "#a3a9b0"),
    "rule": ("#d9d7d0", "#353b42"),
    "paper": ("#fcfbf8", "#15181c"),
    "c0": ("#1f6f8b", "#5fb8d6"),
    "c1": ("#c4571b", "#f0935a"),
    "c2": ("#7b4fa3", "#bd97e0"),
    "c3": ("#3c7f3f", "#7fc480"),
    "c4": ("#b1304d", "#f07f98"),
    "c5": ("#8a6d0f", "#d9b84a"),
    "c6": ("#3f57b8", "#93a5f5"),
    "c7": ("#6e6259", "#b8aa9e"),
}
"""Name -> value on light paper, value on dark paper; text and marks reach 4.5 : 1 on both."""

HEAT: tuple[tuple[str, str], ...] = (
    ("#eef3ee", "#1d2a2e"),
    ("#d9e8e3", "#20383e"),
    ("#bfdad7", "#234850"),
    ("#9fc8cb", "#285a64"),
    ("#7db2bd", "#316e79"),
    ("#5e99ae", "#43838b"),
    ("#467f9c", "#629a98"),
    ("#356486", "#8bb2a3"),
    ("#2a4a6d", "#b7cbb0"),
    ("#212f50", "#e6e3c3"),
)
"""Steps of the heat maps from low to high, on light and on dark paper."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
_PATHS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6h7.2v7.2h-7.2Z",
    "M-4.4,3.4h8.8l-4.4,-7.6Z",
    "M0,-5l4,5l-4,5l-4,-5Z",
    "M-4.4,-3.4h8.8l-4.4,7.6Z",
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
    "M-3.4,-4.4v8.8l7.6,-4.4Z",
)


@dataclass(frozen=True)
class Style:
    """How one method looks in every chart: colour name, its light value, Vega's shape name, SVG path of the swatch."""

    colour: str
    light: str
    shape: str
    path: str


def styles(methods: Sequence[str]) -> dict[str, Style]:
    """Give each method its own colour and shape; pairs repeat after 56 methods."""
    result = {}
    for i, method in enumerate(methods):
        colour = f"c{i % 8}"
        result[method] = Style(colour, COLOURS[colour][0], SHAPES[i % 7], _PATHS[i % 7])
    return result
