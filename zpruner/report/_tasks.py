"""Zero-shot scores as bars, size and speed as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zpruner.artifacts.results import Speed, Storage, Task, ZeroShot
from zpruner.report import _format as fmt
from zpruner.report._charts import Panel
from zpruner.report._svg import to_svg
from zpruner.report._theme import COLOURS, Style, styles
from zpruner.report.data import ReportData, VariantSpec


@dataclass(frozen=True)
class Score:
    """One metric of one zero-shot task, with its standard error where the harness gives one."""

    task: str
    metric: str
    value: float
    stderr: float | None
    facts: Task


def scores_of(found: ZeroShot) -> list[Score]:
    """Return the scores of all tasks."""
    return [
        Score(name, metric, value, stderr, task)
        for name, task in found.tasks.items()
        for metric, (value, stderr) in task.scores.items()
    ]


@dataclass(frozen=True)
class TaskFigure:
    """One panel per task and metric, what was run, and what could not be drawn."""

    panels: tuple[Panel, ...]
    tasks: str
    proof: str


def task_figure(data: ReportData) -> TaskFigure | None:
    """Draw the zero-shot scores of dense and every variant; None where no tasks were run."""
    rows: list[tuple[VariantSpec | None, list[Score]]] = []
    for spec, evaluation in ((None, data.dense), *((v.spec, v.evaluation) for v in data.variants)):
        if evaluation.metrics.zero_shot is not None:
            rows.append((spec, scores_of(evaluation.metrics.zero_shot)))
    if not rows:
        return None
    style = styles(data.method_names)
    keys = list(dict.fromkeys((s.task, s.metric) for _, scores in rows for s in scores))
    panels, facts = [], {}
    for task, metric in keys:
        found = [(spec, s) for spec, scores in rows for s in scores if (s.task, s.metric) == (task, metric)]
        label = f"{task}, {metric}, by variant; bars are one standard error."
        panels.append(Panel(f"{task}: {metric}", to_svg(_bars(found, style), label)))
        first = found[0][1].facts
        shots = "" if first.num_fewshot is None else f", {first.num_fewshot}-shot"
        samples = "" if first.samples is None else f", {fmt.count(first.samples)} questions"
        facts[task] = f"{task} (version {first.version or 'unknown'}{shots}{samples})"
    odd = [
        f"{v.spec.name} ({fmt.percent(v.evaluation.metrics.zero_shot.sparsity)})"
        for v in data.variants
        if v.evaluation.metrics.zero_shot is not None
        and abs(v.evaluation.metrics.zero_shot.sparsity - v.evaluation.metrics.sparsity) > 1e-6
    ]
    proof = "The zeros of every model were counted in memory as it was scored: they are those of the table above"
    proof += f", except {', '.join(odd)}." if odd else "."
    return TaskFigure(tuple(panels), ", ".join(facts.values()), proof)


def _bars(found: Sequence[tuple[VariantSpec | None, Score]], style: dict[str, Style]) -> dict[str, Any]:
    points: list[dict[str, Any]] = []
    for spec, score in found:
        name = "dense" if spec is None else f"{spec.method} {spec.pattern_text}"
        error = score.stderr or 0.0
        text = f"{name}: {score.value:.4g}" + (f" ± {error:.2g} (one standard error)" if error else "")
        colour = COLOURS["mute"][0] if spec is None else style[spec.method].light
        ends = {"low": max(score.value - error, 0.0), "high": score.value + error}
        points.append({"name": name, "x": score.value, "colour": colour, "t": text, **ends})
    top = max(p["high"] for p in points) or 1.0
    axis = {"title": None, "tickCount": 4, "format": ".0%" if top <= 1.5 else "~g", "domain": False, "ticks": False}
    x = {"field": "x", "type": "quantitative", "axis": axis, "scale": {"domain": [0, top * 1.03], "nice": False}}
    labels = {"title": None, "domain": False, "ticks": False, "labelLimit": 160}
    y = {"field": "name", "type": "nominal", "sort": [p["name"] for p in points], "axis": labels}
    ink = {"type": "rule", "color": COLOURS["ink"][0], "strokeWidth": 1.2}
    halo = {"type": "rule", "color": COLOURS["paper"][0], "strokeWidth": 3.6}
    return {
        "width": 235,
        "height": {"step": 20},
        "data": {"values": points},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.66}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {"field": "colour", "type": "nominal", "scale": None},
                    "description": {"field": "t"},
                },
            },
            {
                "transform": [{"filter": "datum.high > datum.low"}],
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
                "layer": [{"mark": halo}, {"mark": ink}],
            },
            {
                "transform": [{"filter": "datum.name == 'dense'"}],
                "mark": {"type": "rule", "color": COLOURS["ink"][0], "strokeDash": [5, 4]},
                "encoding": {"x": x},
            },
        ],
    }


@dataclass(frozen=True)
class SizeRow:
    """One model: sizes as text, speed of it and of dense beside it, and their ratio."""

    name: str
    method: str | None
    is_nm: bool
    stored: str
    bitmask: str
    packed: str
    speed: str
    dense_speed: str
    ratio: str


@dataclass(frozen=True)
class SizeTable:
    """Dense first; `how` says how speeds were measured, empty where they were not."""

    rows: tuple[SizeRow, ...]
    how: str


def size_table(data: ReportData) -> SizeTable | None:
    """Return what every model takes on disk and how fast it is; None where nothing was counted."""
    stored = data.dense.metrics.bytes
    rows = [] if stored is None else [_size_row(None, stored, None, stored)]
    speeds = []
    for variant in data.variants:
        size = variant.evaluation.metrics.bytes
        if size is not None:
            rows.append(_size_row(variant.spec, size, variant.speed, stored))
            speeds += [variant.speed] if variant.speed else []
    if not rows:
        return None
    how = ""
    if speeds:
        devices = ", ".join(sorted({f"{s.device} ({s.threads} threads)" for s in speeds}))
        how = f"{fmt.count(speeds[0].tokens)} tokens on {devices}"
    return SizeTable(tuple(rows), how)


def _size_row(spec: VariantSpec | None, size: Storage, speed: Speed | None, dense: Storage | None) -> SizeRow:
    def text(value: int | None) -> str:
        if value is None:
            return ""
        share = f" ({value / dense.stored:.0%})" if dense is not None and value != dense.stored else ""
        return f"{value / 1e6:,.1f} MB{share}"

    numbers = ("", "", "")
    if speed is not None:
        numbers = (f"{speed.pruned:,.0f}", f"{speed.dense:,.0f}", f"{speed.pruned / speed.dense:.2f}")
    name, method, is_nm = ("dense", None, False) if spec is None else (spec.name, spec.method, spec.is_nm)
    return SizeRow(name, method, is_nm, text(size.stored), text(size.bitmask), text(size.packed), *numbers)
