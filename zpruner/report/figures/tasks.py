"""Zero-shot scores as bars."""

from __future__ import annotations

from collections.abc import Sequence

from zpruner.report import format as fmt
from zpruner.report.data import VariantSpec
from zpruner.report.marks import DASHED, INK, MUTE, PAPER, Spec
from zpruner.report.page import Figure, panels
from zpruner.report.ranking import Report
from zpruner.report.svg import to_svg

Score = tuple[VariantSpec | None, float, float | None]
"""A variant (None: dense), its score and the standard error."""


def figure(report: Report) -> Figure | None:
    """Draw one panel per task and metric; None where no tasks were run."""
    specs = {None: report.data.dense} | {v.spec: v.evaluation for v in report.data.variants}
    found: dict[tuple[str, str], list[Score]] = {}
    facts: dict[str, str] = {}
    for spec, evaluation in specs.items():
        if evaluation.metrics.zero_shot is not None:
            for name, task in evaluation.metrics.zero_shot.tasks.items():
                shots = "" if task.num_fewshot is None else f", {task.num_fewshot}-shot"
                samples = "" if task.samples is None else f", {fmt.count(task.samples)} questions"
                facts.setdefault(name, f"{name} (version {task.version or 'unknown'}{shots}{samples})")
                for metric, (value, stderr) in task.scores.items():
                    found.setdefault((name, metric), []).append((spec, value, stderr))
    if not found:
        return None
    charts = [
        (
            f"{task}: {metric}",
            to_svg(_bars(report, scores), f"{task}, {metric}, by variant; bars are one standard error."),
        )
        for (task, metric), scores in found.items()
    ]
    caption = (
        "Higher is better; bars end in one standard error, the dashed line is dense. Run with lm-evaluation-harness: "
        f"{', '.join(facts.values())}. {_proof(report)}"
    )
    return Figure(panels(charts), "Zero-shot tasks", fmt.typeset(caption))


def _proof(report: Report) -> str:
    odd = [
        f"{v.spec.name} ({fmt.percent(v.metrics.zero_shot.sparsity)})"
        for v in report.data.variants
        if v.metrics.zero_shot is not None and abs(v.metrics.zero_shot.sparsity - v.metrics.sparsity) > 1e-6
    ]
    words = "The zeros of every model were counted in memory as it was scored: they are those of the table above"
    return words + (f", except {', '.join(odd)}." if odd else ".")


def _bars(report: Report, scores: Sequence[Score]) -> Spec:
    values = []
    for spec, value, stderr in scores:
        name, error = "dense" if spec is None else f"{spec.method} {spec.pattern_text}", stderr or 0.0
        text = f"{name}: {value:.4g}" + (f" ± {error:.2g} (one standard error)" if error else "")
        colour = MUTE if spec is None else report.styles[spec.method].light
        ends = {"low": max(value - error, 0.0), "high": value + error}
        values.append({"name": name, "x": value, "colour": colour, "t": text, **ends})
    top = max(ends for _, value, stderr in scores for ends in [value + (stderr or 0.0)]) or 1.0
    axis = {"title": None, "tickCount": 4, "format": ".0%" if top <= 1.5 else "~g", "domain": False, "ticks": False}
    x = {"field": "x", "type": "quantitative", "axis": axis, "scale": {"domain": [0, top * 1.03], "nice": False}}
    labels = {"title": None, "domain": False, "ticks": False, "labelLimit": 160}
    y = {"field": "name", "type": "nominal", "sort": [v["name"] for v in values], "axis": labels}
    paint = {"field": "colour", "type": "nominal", "scale": None}
    rule = {"type": "rule", "color": INK, "strokeWidth": 1.2}
    halo = {"type": "rule", "color": PAPER, "strokeWidth": 3.6}
    return {
        "width": 235,
        "height": {"step": 20},
        "data": {"values": values},
        "layer": [
            {
                "mark": {"type": "bar", "height": {"band": 0.66}},
                "encoding": {"x": x, "y": y, "color": paint, "description": {"field": "t"}},
            },
            {
                "transform": [{"filter": "datum.high > datum.low"}],
                "encoding": {"y": y, "x": {**x, "field": "low"}, "x2": {"field": "high"}},
                "layer": [{"mark": halo}, {"mark": rule}],
            },
            {"transform": [{"filter": "datum.name == 'dense'"}], "mark": DASHED, "encoding": {"x": x}},
        ],
    }
