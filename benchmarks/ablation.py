"""What each ingredient of our compositions is worth on text that was not calibrated with: each is changed in turn.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --text another.txt --patterns 0.5,2:4 --blocks 30 --windows 32

Prunes the first blocks of the default model under pruned propagation and prints the perplexity on the search's part of
the calibration source, which neither calibration nor evaluation reads, and on other texts. Needs `dvc repro calibrate`
to have run. Results are appended to a JSON-lines file as they come; what is there is not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import torch
import typer

import zpruner
from zpruner.model import take_inventory
from zpruner.pruning.presets import PRESETS
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.settings.reading import read_params
from zpruner.sources import read_text, resolve_source
from zpruner.text import evaluation_windows, read_windows

BEST = PRESETS["best"]
FIXED = {"damping": 0.1, "shrinkage": 0.2}


def _regularised(damping: float | str, shrinkage: float | str) -> Mapping[str, Any]:
    """Return `best` with other settings of both its solvers."""
    settings = {"damping": damping, "shrinkage": shrinkage}
    update = {"name": "least_squares", "settings": settings}
    return {**BEST, "settings": {**settings, "effect": 0.5}, "update": update}


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "best": BEST,
    "with the stream": {**BEST, "correct": {"stream": 0.5}},
    "without correct": {**BEST, "correct": None},
    "measured block by block": {**BEST, "measure": "block"},
    "shrinkage 0.2": _regularised(0.1, 0.2),
    "shrinkage 0.5": _regularised(0.1, 0.5),
    "damping 0.3": _regularised(0.3, "auto"),
    "all that can be chooses itself": {**_regularised("auto", "auto"), "correct": {"share": "auto"}},
    "less regularised": _regularised(0.01, 0.0),
    "ALPS' support": {**BEST, "score": "alps", "settings": FIXED},
    "OBS' support": {**BEST, "score": "sparsegpt", "settings": FIXED},
    "rows alike": {**BEST, "settings": {**BEST["settings"], "effect": 0.0}},
    "best_permuted": PRESETS["best_permuted"],
    "best_guided": PRESETS["best_guided"],
    "guided by all of the gradient": {**BEST, "settings": {**BEST["settings"], "effect": 0.0, "sensitivity": 1.0}},
    "best_allocated": PRESETS["best_allocated"],
    "best_allocated, tuned": {**PRESETS["best_allocated"], "tune": {}},
    "best_tuned": PRESETS["best_tuned"],
    "tuned to the block's own outputs": {**PRESETS["best_tuned"], "tune": {"share": 0.0}},
    "alps": PRESETS["alps"],
    "sparsegpt": PRESETS["sparsegpt"],
}


def main(
    text: Annotated[list[Path] | None, typer.Option(help="Another text; may be given several times.")] = None,
    patterns: str = "0.5",
    blocks: Annotated[int, typer.Option(help="Blocks that are pruned, from the first.")] = 6,
    windows: Annotated[int, typer.Option(help="Calibration windows.")] = 16,
    evaluated: Annotated[int, typer.Option(help="Windows of 512 tokens of each text.")] = 8,
    only: Annotated[str, typer.Option(help="Variants, separated by commas.")] = ",".join(VARIANTS),
    log: Path = Path("benchmarks/results/ablation.jsonl"),
) -> None:
    """Fill the table and print it."""
    keep_freed_memory()
    names = [name.strip() for name in only.split(",")]
    keys = [(pattern, name) for pattern in patterns.split(",") for name in ["dense", *names]]
    setup = {"blocks": blocks, "windows": windows, "evaluated": evaluated}
    known = {(e["pattern"], e["variant"]) for e in read(log) if {key: e[key] for key in setup} == setup}
    if todo := [key for key in keys if key not in known]:
        fill(todo, log, text or [], setup)
    columns = ["sparsity", "variant", "news", *(path.stem for path in text or []), "processor seconds"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for entry in read(log):
        if (entry["pattern"], entry["variant"]) in keys and {key: entry[key] for key in setup} == setup:
            cells = [f"{value:.2f}" for value in entry["perplexity"]]
            print(f"| {entry['pattern']} | {entry['variant']} | {' | '.join(cells)} | {entry['seconds']:.0f} |")


def fill(todo: list[tuple[str, str]], log: Path, texts: list[Path], setup: Mapping[str, int]) -> None:
    """Prune, measure, restore: one model in memory for all variants."""
    model, tokenizer = zpruner.load("data/models/dense")
    calibration, _ = read_windows(Path("data/calibration/tokens.arrow"))
    held_out = read_params(Path("params.yaml")).the_search().text
    first = (held_out.source, held_out.documents, held_out.part)
    sources = [first, *((str(path), "file", (0.0, 1.0)) for path in texts)]
    evaluations = [
        evaluation_windows(
            read_text(resolve_source(source, "dataset"), None, Path("data/.downloads"), documents=documents),
            tokenizer,
            seqlen=512,
            vocab_size=model.config.vocab_size,
            windows=setup["evaluated"],
            part=part,
        )
        for source, documents, part in sources
    ]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    later = [f"*.{block}.*" for block in range(setup["blocks"], take_inventory(model).n_blocks)]
    for pattern, variant in todo:
        start = process_time()
        if variant != "dense":
            ids = calibration[: setup["windows"]]
            zpruner.prune_sequentially(model, ids, method=VARIANTS[variant], sparsity=pattern, ignore=later)
        seconds = process_time() - start
        found = [zpruner.perplexity(model, ids) for ids in evaluations]
        entry = {"pattern": pattern, "variant": variant, "perplexity": found, "seconds": round(seconds, 1), **setup}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(entry, flush=True)
        with torch.no_grad():
            model.load_state_dict(state)


def read(log: Path) -> list[dict[str, Any]]:
    """Return the measurements."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


if __name__ == "__main__":
    typer.run(main)
