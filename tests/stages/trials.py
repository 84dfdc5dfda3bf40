"""Projects of several kinds after every stage, the search's among them, for trials of what a stage reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import staged
from staged import METHOD, PACKED

from stages import fetch, gradients, plan, search, search_report

SEARCH = {
    "text": {"source": "source/text.txt", "documents": "lines", "part": [0.75, 1.0], "seqlen": 16, "batch_size": 2},
    "sparsities": [0.5],
    "initial": ["mul(W, sqrt(X))"],
    "population": 3,
    "elite": 1,
    "generations": 1,
    "rungs": [1, 2],
}
INSTANCES: dict[str, Callable[[Path], None]] = {
    "plan-search": lambda root: plan.run(root, search=True),
    **staged.INSTANCES,
    "fetch-search": lambda root: fetch.run(fetch.What.search, root),
    "gradients-search": lambda root: gradients.run(root, search=True),
    "search": lambda root: search.run(root),
    "search_report": lambda root: search_report.run(root),
}
READING = [name for name in INSTANCES if name not in ("sources", "plan", "plan-search", "fetch-model")]
PROJECTS: dict[str, dict[str, Any]] = {
    "whole": {"propagation": "dense", "packed": PACKED},
    "streamed": {"propagation": "dense", "streaming": "always", "packed": PACKED},
    "propagated": {"propagation": "pruned", "packed": PACKED},
    "propagated and streamed": {"propagation": "pruned", "streaming": "always"},
    "made in memory": {"propagation": "dense", "checkpoints": []},
    "gradients": {"propagation": "dense", "methods": {METHOD: {"score": "pruner_zero"}}},
}


def make(root: Path, kind: str) -> Path:
    """Make a project of a kind, run every stage, and remove what only resumed runs need."""
    changes = dict(PROJECTS[kind])
    streaming, checkpoints = changes.pop("streaming", "never"), changes.pop("checkpoints", "all")
    staged.make(root, **changes)
    staged.change_params(root, "machine.streaming", streaming)
    staged.change_params(root, "evaluation.checkpoints", checkpoints)
    staged.change_params(root, "evaluation.perplexity.part", [0.5, 0.75])
    staged.change_params(root, "search", SEARCH)
    for name in INSTANCES:
        if runs(kind, name):
            INSTANCES[name](root)
    for name in (".work", ".searches", ".downloads"):
        shutil.rmtree(root / "data" / name, ignore_errors=True)
    return root


def runs(kind: str, stage: str) -> bool:
    """Return whether a stage runs in a project of a kind: searches need the whole model in memory."""
    return "streamed" not in kind or not stage.startswith(("gradients-search", "search"))


def untimed(root: Path) -> dict[str, bytes]:
    """Return every artifact but those that hold timings: costs, and the logs of searches."""
    found = staged.artifacts(root).items()
    return {name: data for name, data in found if "costs" not in name and not name.endswith("log.jsonl")}
