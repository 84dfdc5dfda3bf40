"""The plots that dvc.yaml names as images, for pages that hold no script: Prefect's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import vl_convert

from zpruner.settings.plain_yaml import read_yaml

WIDTH, HEIGHT = 560, 300
MARKS = {"scatter": {"type": "point", "filled": True, "size": 60}, "linear": {"type": "line", "point": True}}
"""DVC's templates, as marks of Vega-Lite."""


def read_charts(file: Path, below: Path) -> Iterator[tuple[str, str]]:
    """Yield the title and the address (`data:image/png...`) of every plot in a DVC file whose data are there.

    Args:
        file: dvc.yaml; its paths are relative to its folder.
        below: of its plots, those with data in this folder.
    """
    named = [entry for plot in read_yaml(file).get("plots", ()) if isinstance(plot, dict) for entry in plot.items()]
    for title, facts in named:
        x, y = _axis(facts, "x"), _axis(facts, "y")
        if x is None or y is None or facts.get("template") not in MARKS:
            continue  # one of the other forms that DVC knows
        data = file.parent / x[0]
        if data.is_relative_to(below) and data.is_file():
            rows = json.loads(data.read_text(encoding="utf-8"))
            image = vl_convert.vegalite_to_png(json.dumps(_chart(facts, x[1], y[1], rows)), scale=1.5)
            yield title, f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _axis(facts: Any, name: str) -> tuple[str, str] | None:
    """Return the file and the column of an axis, None where it is not one of each."""
    axis = facts.get(name) if isinstance(facts, dict) else None
    pairs = list(axis.items()) if isinstance(axis, dict) else []
    return pairs[0] if len(pairs) == 1 and isinstance(pairs[0][1], str) else None


def _chart(facts: dict[str, Any], x: str, y: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return one series for every value of the first column of words."""
    series = next((name for name, value in (rows[0] if rows else {}).items() if isinstance(value, str)), None)
    encoding = {
        "x": {"field": x, "type": "quantitative", "title": facts.get("x_label", x), "scale": {"zero": False}},
        "y": {"field": y, "type": "quantitative", "title": facts.get("y_label", y), "scale": {"zero": False}},
    }
    if series is not None:
        encoding["color"] = {"field": series, "type": "nominal", "title": None}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "width": WIDTH,
        "height": HEIGHT,
        "data": {"values": rows},
        "mark": MARKS[facts["template"]],
        "encoding": encoding,
    }
