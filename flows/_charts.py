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
    for plot in read_yaml(file).get("plots", ()):
        for title, facts in plot.items():
            [(source, x)], [(_, y)] = facts["x"].items(), facts["y"].items()
            data = file.parent / source
            if data.is_relative_to(below) and data.is_file() and facts.get("template") in MARKS:
                rows = json.loads(data.read_text(encoding="utf-8"))
                image = vl_convert.vegalite_to_png(json.dumps(_chart(facts, x, y, rows)), scale=1.5)
                yield title, f"data:image/png;base64,{base64.b64encode(image).decode()}"


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
