"""Perplexity, layer error and processor time of the published methods and our best composition, over a grid.

    python benchmarks/compositions.py --text ../shared/data/wikitext2_raw_test.txt

Results are appended to a JSON-lines file as they come, and what is there already is not computed again; the table at
the end is made from the file. The time is the process's own on the processor, summed over threads, so that other work
on the machine does not count. Needs `dvc repro calibrate` to have run (model and calibration windows).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from time import process_time
from typing import Annotated

import torch
import typer
from _default import model_and_windows

import zpruner
from zpruner.model import get_weight
from zpruner.pruning.compose import compose
from zpruner.pruning.presets import PRESETS
from zpruner.runtime.progress import progress
from zpruner.settings.params import MethodSettings
from zpruner.types import Stat

PATTERNS = ["0.5", "0.6", "0.7", "2:4", "4:8"]
METHODS = [name for name in PRESETS if name != "pruner_zero"]


def main(
    text: Annotated[Path | None, typer.Option(help="Evaluation text; the default is the pipeline's.")] = None,
    log: Path = Path("benchmarks/results/compositions.jsonl"),
    methods: str = ",".join(METHODS),
    patterns: str = ",".join(PATTERNS),
    propagations: str = "dense,pruned",
    windows: int = 24,
    seqlen: int = 512,
    table: Annotated[bool, typer.Option(help="Only print the table.")] = False,
) -> None:
    """Fill the grid and print it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    todo = [
        (propagation, pattern, method)
        for propagation in propagations.split(",")
        for pattern in patterns.split(",")
        for method in methods.split(",")
        if (propagation, pattern, method) not in read(log)
        and not (method == "apt_sm" and ":" not in pattern)
        and not (propagation == "dense" and "tune" in PRESETS[method])
        and not (":" in pattern and "allocate" in PRESETS[method])
        and not (method == "best_permuted" and ":" not in pattern)
    ]
    if todo and not table:
        fill(todo, log, text, windows, seqlen)
    show(read(log))


def fill(todo: list[tuple[str, str, str]], log: Path, text: Path | None, windows: int, seqlen: int) -> None:
    """Prune, measure, restore: one model in memory for all variants."""
    model, calibration, evaluation = model_and_windows(text, windows, seqlen)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense_stats = None
    if ("", "", "dense") not in read(log):
        append(log, "", "", "dense", zpruner.perplexity(model, evaluation), 0.0, 0.0)
    for propagation, pattern, method in progress(todo, "grid", len(todo), "variant"):
        if propagation == "dense":
            if dense_stats is None:
                dense_stats = zpruner.calibrate(model, calibration, stats=zpruner.needs(*METHODS))
            start = process_time()
            layers = zpruner.prune(model, dense_stats, method=method, sparsity=pattern)
        else:
            start = process_time()
            layers = zpruner.prune_sequentially(model, calibration, method=method, sparsity=pattern)
        seconds = process_time() - start
        error = sum(layer.layer_error for layer in layers) / len(layers)
        achieved = sum(int((get_weight(model, entry) == 0).sum()) for entry in _inventory(model))
        print(propagation, pattern, method, achieved, flush=True)
        append(log, propagation, pattern, method, zpruner.perplexity(model, evaluation), error, seconds)
        with torch.no_grad():
            model.load_state_dict(state)


def _inventory(model: object) -> tuple[zpruner.model.PrunableLayer, ...]:
    return zpruner.model.take_inventory(model).layers  # type: ignore[arg-type]


def append(
    log: Path, propagation: str, pattern: str, method: str, perplexity: float, error: float, seconds: float
) -> None:
    """Add one measurement to the log."""
    entry = {"propagation": propagation, "pattern": pattern, "method": method, "perplexity": perplexity}
    entry |= {"layer_error": error, "cpu_seconds": round(seconds, 2), "threads": torch.get_num_threads()}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read(log: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """Return the measurements by (propagation, pattern, method); the last of a key counts."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return {(e["propagation"], e["pattern"], e["method"]): e for e in entries}


def show(found: dict[tuple[str, str, str], dict[str, float]]) -> None:
    """Print a Markdown table per propagation: perplexity, and in brackets layer error and seconds.

    An error with `~` takes the inputs as uncorrelated: a method without need of Gram matrices collects none where the
    statistics are its own.
    """
    dense = found.get(("", "", "dense"), {}).get("perplexity", math.nan)
    patterns = [p for p in PATTERNS if any(key[1] == p for key in found)]
    for propagation in dict.fromkeys(key[0] for key in found if key[0]):
        print(f"\n### propagation: {propagation} (dense model: {dense:.2f})\n")
        print(f"| method | {' | '.join(patterns)} |\n|---|{'--:|' * len(patterns)}")
        measured = [key[2] for key in found if key[0] == propagation]
        for method in dict.fromkeys(measured if propagation == "dense" else ["magnitude", *measured]):
            rough = propagation == "pruned" and Stat.GRAM not in compose(MethodSettings(**PRESETS[method])).needs
            cells = []
            for pattern in patterns:
                entry = found.get((propagation, pattern, method))
                if entry is None:
                    # Without groups S is M, and magnitude looks at no statistics.
                    same = "as apt_mm" if method == "apt_sm" and ":" not in pattern else ""
                    cells.append("as with dense" if method == "magnitude" else same)
                    continue
                error, seconds = entry["layer_error"], entry["cpu_seconds"]
                cells.append(f"{entry['perplexity']:.2f} ({'~' * rough}{error:.4f}, {seconds:.0f} s)")
            print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    typer.run(main)
