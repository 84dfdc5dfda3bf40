"""The formula search on the default model: how fast it is, and whether what it found is any good.

    python -m benchmarks.search speed
    python -m benchmarks.search compare [--formula TEXT] [--text FILE] [--windows N]

`speed` measures formulas on every rung with warm caches. `compare` measures a formula (that of data/search/best.json)
beside the dense model and known methods, at 50 % if not told otherwise, on a text that the search did not read: the
evaluation's, or a file. Every model is measured once and kept in benchmarks/results/search/compare.jsonl. Both need
`dvc repro search/dvc.yaml`, or at least its stages text and gradients.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from stages._project import Project
from stages.search import Inputs
from zpruner.evaluate import evaluation_text, ratio_interval, window_losses
from zpruner.model import load_model, set_weight
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import Composition
from zpruner.search import Fitness, parse_formula
from zpruner.settings.params import MethodSettings
from zpruner.sources import load_tokenizer, read_text
from zpruner.text import evaluation_windows
from zpruner.types import SparsityPattern

RESULTS = Path(__file__).parent / "results" / "search" / "compare.jsonl"
KNOWN: dict[str, dict[str, Any]] = {
    "magnitude": {"score": "magnitude", "group": "layer"},
    "wanda": {"score": "wanda", "group": "row"},
    "ria": {"score": "ria", "group": "layer"},
    "pruner_zero": {"score": "pruner_zero", "group": "row"},
}
FORMULAS = (
    "mul(W, sqrt(X))",
    "mul(abs(mul(W, W)), mms(G))",
    "mul(sqrt(X), add(zsn(W), log(G)))",
    "sub(exp(W), tanh(G))",
)
"""Of the sizes that a search tries."""
KEY = ("model", "text", "windows", "seqlen", "sparsity")
"""What tells the results of `compare` apart."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def speed(rounds: int = 1) -> None:
    """Measure evaluations per minute on every rung, and the share of the forward passes."""
    project = Project.open(Path())
    settings = project.params.the_search()
    fitness: Fitness = Inputs(project).fitness(settings)
    formulas = [parse_formula(text) for text in FORMULAS]
    list(fitness(formulas[:1], 1))  # the first pass of a process is slower
    print(f"{torch.get_num_threads()} threads, {len(settings.sparsities)} sparsities, {settings.text.seqlen} tokens")
    for windows in settings.rungs:
        started, processor = perf_counter(), os.times().user
        parts: dict[str, float] = {}
        for found in fitness(formulas * rounds, windows):
            parts = {name: parts.get(name, 0.0) + seconds for name, seconds in found.parts.items()}
        wall, count = perf_counter() - started, len(formulas) * rounds
        whole = sum(parts.values())
        shares = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in parts.items())
        spent = (os.times().user - processor) / count
        print(
            f"{windows} windows: {60 * count / wall:.1f} evaluations a minute, {spent:.1f} s of one core each; {shares}"
        )


@app.command()
def compare(
    formula: Annotated[str | None, typer.Option(help="A formula; left out: that of data/search/best.json.")] = None,
    text: Annotated[Path | None, typer.Option(help="A text file; left out: the evaluation's text.")] = None,
    windows: int = 16,
    sparsity: float = 0.5,
    known_only: bool = False,
) -> None:
    """Measure perplexity on unseen text."""
    project = Project.open(Path())
    inputs = Inputs(project)
    ids = _windows(project, text, windows)
    label = "evaluation" if text is None else text.stem
    models: dict[str, dict[str, Any] | None] = {"dense": None, **KNOWN}
    if not known_only:
        chosen = formula or json.loads((project.search / "best.json").read_text(encoding="utf-8"))
        models[str(parse_formula(chosen))] = {"score": "expression", "settings": {"formula": chosen}, "group": "row"}
    kept = {tuple(row[name] for name in KEY): row["losses"] for row in _read()}
    losses: dict[str, list[float]] = {}
    model = None
    for name, settings in models.items():
        key = (name, label, *ids.shape, sparsity if settings else 0.0)
        if key not in kept:
            model = model or load_model(project.dense, device=project.params.machine.device)
            composition = None if settings is None else compose(MethodSettings(**settings))
            _prune(model, inputs, composition, SparsityPattern(ratio=sparsity))
            kept[key] = [loss for batch in window_losses(model, ids) for loss in batch]
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as out:
                row = dict(zip(KEY, key, strict=True))
                out.write(json.dumps({**row, "losses": [round(loss, 6) for loss in kept[key]]}) + "\n")
        losses[name] = kept[key]
    what = f"perplexity at {sparsity:.0%}, change against Wanda (95 % interval)"
    print(f"{label}, {ids.shape[0]} windows of {ids.shape[1]} tokens: {what}")
    for line in _table(losses):
        print(line)


def _windows(project: Project, text: Path | None, count: int) -> Tensor:
    measured = project.params.evaluation.perplexity
    if text is not None:
        measured = measured.model_copy(
            update={"source": str(text.resolve()), "sha256": None, "documents": "file", "part": (0.0, 1.0)}
        )
    found = read_text(measured.source, measured.sha256, project.downloads, documents=measured.documents)
    config = json.loads((project.dense / "config.json").read_text(encoding="utf-8"))
    return evaluation_windows(
        evaluation_text(found, measured),
        load_tokenizer(project.dense),
        seqlen=measured.seqlen,
        vocab_size=config["vocab_size"],
        windows=count,
        part=measured.part,
    )


def _prune(model: Any, inputs: Inputs, composition: Composition | None, pattern: SparsityPattern) -> None:
    """Write the dense weights into the model, pruned by a composition where there is one."""
    for layer in inputs.activations.layers:
        weight = inputs.dense.read_weight(layer)
        if composition is not None:
            stats = inputs.stats(layer.name)
            mask = composition.mask(weight, stats, pattern)
            weight = composition.apply(weight, mask, stats)
        set_weight(model, layer, weight)


def _read() -> Iterator[dict[str, Any]]:
    if RESULTS.exists():
        yield from map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())


def _table(losses: dict[str, list[float]]) -> Iterator[str]:
    for name in losses:
        mean = sum(losses[name]) / len(losses[name])
        ratio = mean - sum(losses["wanda"]) / len(losses["wanda"])
        interval = ratio_interval(losses[name], losses["wanda"])
        low, high = (interval.low, interval.high) if interval else (math.nan, math.nan)
        change = f"{math.expm1(ratio):+8.1%}  ({low - 1:+.1%} to {high - 1:+.1%})" if name != "wanda" else ""
        yield f"{name:<60} {math.exp(mean):9.2f} {change}"


if __name__ == "__main__":
    app()
