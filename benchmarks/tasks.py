"""Accuracy on a zero-shot task of the default model, dense and pruned at one sparsity by several compositions.

    python benchmarks/tasks.py QUESTIONS.jsonl --limit 400

QUESTIONS has one JSON object per line with `query`, `choices` and `gold`, as HellaSwag's validation split. Results are
appended to a JSON-lines file as they come, and what is there already is not computed again. Needs `dvc repro calibrate`
to have run (model and calibration windows).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from _default import MODEL, WINDOWS

import zpruner
from zpruner.evaluate import ZeroShot
from zpruner.settings.params import ZeroShotSettings
from zpruner.text import read_windows

TASK = "hellaswag_local"
TASKS = Path("tasks")


def main(
    questions: Path,
    log: Path = Path("benchmarks/results/tasks.jsonl"),
    methods: str = "dense,sparsegpt,alps,best,best_guided,best_allocated",
    sparsity: str = "0.5",
    limit: Annotated[int, typer.Option(help="The first so many questions.")] = 400,
) -> None:
    """Prune block after block, ask, restore; then print the table."""
    model, tokenizer = zpruner.load(MODEL)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = ZeroShotSettings(tasks=[TASK], num_fewshot=0, limit=limit, batch_size=8, include_path=str(TASKS))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TASKS, Path(folder) / TASKS)
        shutil.copy(questions, Path(folder) / TASKS / f"{TASK}.jsonl")
        for method in methods.split(","):
            if method in read(log):
                continue
            if method != "dense":
                zpruner.prune_sequentially(model, read_windows(WINDOWS)[0], method=method, sparsity=sparsity)
            scores = ZeroShot(model, tokenizer, settings, Path(folder)).run(TASK)[TASK]
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"method": method, "sparsity": sparsity, **scores}) + "\n")
            with torch.no_grad():
                model.load_state_dict(state)
    print(f"| method at {sparsity} | accuracy, normalised | by chance |\n|---|--:|--:|")
    for method, found in read(log).items():
        print(f"| {method} | {found['acc_norm']:.1%} | +- {found['acc_norm_stderr']:.1%} |")


def read(log: Path) -> dict[str, dict[str, Any]]:
    """Return the measurements by method."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {entry["method"]: entry for entry in map(json.loads, lines)}


if __name__ == "__main__":
    typer.run(main)
