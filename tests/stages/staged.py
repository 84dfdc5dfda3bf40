"""The stages in the order of the graph, run in this process on tiny projects without DVC."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny

from stages import apply, calibrate, evaluate, fetch, generate, gradients, mask, pack, report, score, sources
from zpruner.structures import find_couplings

METHOD, SPARSITY = "swapped", "s24"
PACKED = {"variants": [f"{METHOD}/{SPARSITY}"], "rounds": 0}

INSTANCES: dict[str, Callable[[Path], None]] = {
    "sources": lambda root: sources.run(["model", "calibration", "evaluation"], root),
    "plan": tiny.plan,
    "fetch-model": lambda root: fetch.run(fetch.What.model, root),
    "generate": lambda root: generate.run(root),
    "fetch-calibration": lambda root: fetch.run(fetch.What.calibration, root),
    "fetch-evaluation": lambda root: fetch.run(fetch.What.evaluation, root),
    "calibrate": lambda root: calibrate.run(root, snapshot_seconds=0.0),
    "gradients": lambda root: gradients.run(root, snapshot_seconds=0.0),
    "score": lambda root: score.run(METHOD, root),
    "mask": lambda root: mask.run(METHOD, SPARSITY, root),
    "apply": lambda root: apply.run(METHOD, SPARSITY, root),
    "pack": lambda root: pack.run(METHOD, SPARSITY, root),
    "evaluate_dense": lambda root: evaluate.run(dense=True, root=root),
    "evaluate": lambda root: evaluate.run(METHOD, SPARSITY, root=root),
    "report": lambda root: report.run(root=root),
}


@contextmanager
def couplings_found_once(family: str) -> Iterator[None]:
    """Finding what can be cut takes longer than a stage: of the tiny model it is found once."""
    couplings = find_couplings(tiny.build(family))
    with pytest.MonkeyPatch.context() as patch:
        for module in ("stages._structures", "zpruner.pruning.fitting", "zpruner.pruning.smaller"):
            patch.setattr(f"{module}.find_couplings", lambda model, blocks: couplings)
        yield


def make(root: Path, family: str = "llama", **changes: Any) -> Path:
    """Write the sources and settings of a project with one variant that uses every part of a composition.

    `changes` are keys of `calibration`, or whole top-level entries.
    """
    tiny.make_sources(root, family)
    params = tiny.read_params(root)
    params["methods"] = {METHOD: {"score": "wanda", "group": "row", "refine": "swaps", "update": "obs"}}
    params["sparsities"] = {SPARSITY: "2:4"}
    params["packed"] = {}
    for key, value in changes.items():
        (params if key in params else params["calibration"])[key] = value
    tiny.write_params(root, params)
    return root


def run_all(root: Path, until: str = "report") -> Path:
    """Run every stage up to `until`, itself included."""
    for name, instance in INSTANCES.items():
        instance(root)
        if name == until:
            break
    return root


def artifacts(root: Path) -> dict[str, bytes]:
    """Return every published file but the costs, which hold timings."""
    return tiny.files_of(root / "data", leave_out=(".work", ".downloads", "costs", "sources"))


def change_params(root: Path, where: str, value: Any, plan: bool = True) -> None:
    """Set a dotted key of params.yaml; `plan` anew where stages have run."""
    params = tiny.read_params(root)
    *path, last = where.split(".")
    found: Any = params
    for part in path:
        found = found[part]
    found[last] = value
    if plan:
        tiny.write_params(root, params)
    else:
        (root / "params.yaml").write_text(json.dumps(params), encoding="utf-8")
