"""dvc.yaml names every file of ours that can change a stage's result."""

from pathlib import Path

import closure
import pytest
import tiny
from ruamel.yaml import YAML

from zpruner.methods import METHODS

HOW = [
    "stages/_code.py",
    "stages/_project.py",
    "stages/_ran.py",
    "zpruner/calibration/reached.py",
    "zpruner/errors.py",
    "zpruner/runtime",
    "zpruner/settings/explain.py",
    "zpruner/settings/setting_files.py",
    "zpruner/settings/evolution.py",
    "zpruner/settings/moved.py",
    "zpruner/settings/params.py",
    "zpruner/settings/plain_yaml.py",
    "zpruner/settings/wording.py",
    "zpruner/model/computed.py",
    "zpruner/model/given.py",
    "zpruner/model/undisturbed.py",
    "zpruner/patterns.py",
    "zpruner/pruning/presets.py",
    "zpruner/registry.py",
    "zpruner/artifacts/result_file.py",
    "zpruner/artifacts/results.py",
    "zpruner/artifacts/arrow.py",
    "zpruner/artifacts/store.py",
    "zpruner/artifacts/sealed_lines.py",
    "zpruner/artifacts/work.py",
    "zpruner/checkpoint/files.py",
    "zpruner/checkpoint/manifest.py",
    "zpruner/sources/_disk.py",
    "zpruner/runtime/quiet.py",
    "zpruner/execution/choose.py",
    "zpruner/checkpoint/conversion.py",
    "zpruner/model/limits.py",
    "zpruner/execution/lockstep.py",
    "zpruner/execution/read_ahead.py",
    "zpruner/execution/runner.py",
    "zpruner/execution/skeleton.py",
    "zpruner/execution/spill.py",
    "zpruner/checkpoint/tensors.py",
    *(f"zpruner/model/{name}.py" for name in ("config", "loader", "opening", "stored", "weight_files")),
    "zpruner/calibration/snapshots.py",
]
"""Say how and not what: where files lie, messages, bars, formats; and reading a model block by block, which tests hold
to the numbers of a model in memory."""

ENERGY = "zpruner/linalg/_energy.py"
"""Imported with the statistics; calibrate and evaluate run it."""
SOLVERS = [
    path.relative_to(tiny.REPOSITORY).as_posix() for path in sorted((tiny.REPOSITORY / "zpruner/linalg").glob("*.py"))
]
SOLVERS.remove(ENERGY)
COMPOSING = [
    "zpruner/pruning/composition.py",
    "zpruner/allocations",
    "zpruner/corrections",
    "zpruner/masks",
    "zpruner/methods/_base.py",
    "zpruner/updates",
    *SOLVERS,
]
"""Imported to check the settings."""
STATISTICS = [
    f"zpruner/calibration/{name}.py"
    for name in ("accumulate", "artifact", "capture", "collection", "dense", "experts", "gradients")
]
"""Imported to read statistics and windows that another stage took."""
INVENTORY = [f"zpruner/model/{name}.py" for name in ("experts", "inventory", "products", "usage")]
"""Imported with what reads an inventory that another stage took."""
MODELS = [*INVENTORY, *(f"zpruner/model/{name}.py" for name in ("bfloat16", "layers", "load", "weights"))]
"""Imported with what reads a checkpoint's tensors."""
COPYING = ["zpruner/execution/copy.py", "zpruner/model/gguf.py", "zpruner/model/gguf_header.py"]
"""Imported with what fetches a model, whose source fixes what it is."""
TEXTS = ["zpruner/sources", "zpruner/text", *COPYING]
"""Imported with the five-line use in Python, and with what reads windows."""

NOT_RUN = {
    "fetch": [*COMPOSING, ENERGY, *STATISTICS, *MODELS, *COPYING, "zpruner/types.py"],
    "calibrate": [
        *COMPOSING,
        *TEXTS,
        "zpruner/calibration/gradients.py",
        "zpruner/model/weights.py",
        "zpruner/types.py",
    ],
    "needs": [*COMPOSING, ENERGY, *MODELS, *TEXTS, *STATISTICS, "zpruner/types.py"],
    "gradients": [*COMPOSING, ENERGY, *STATISTICS, *TEXTS, "zpruner/model/weights.py", "zpruner/types.py"],
    "score": [*COMPOSING, ENERGY, *STATISTICS, *MODELS, *TEXTS],
    "mask": [
        *STATISTICS,
        *TEXTS,
        "zpruner/evaluate/layer_error.py",
        "zpruner/methods/_base.py",
        "zpruner/model/layers.py",
        *INVENTORY,
    ],
    "apply": [*COMPOSING, *STATISTICS, *MODELS, *TEXTS, "zpruner/types.py"],
    "evaluate_dense": [*COMPOSING, ENERGY, *STATISTICS, *TEXTS, "zpruner/model/weights.py", "zpruner/types.py"],
    "evaluate": [*COMPOSING, *STATISTICS, *TEXTS, *INVENTORY, "zpruner/model/weights.py", "zpruner/types.py"],
    "search/text": [*COMPOSING, ENERGY, *STATISTICS, *MODELS, *COPYING, "zpruner/types.py"],
    "search/gradients": [*COMPOSING, ENERGY, *STATISTICS, *TEXTS, "zpruner/model/weights.py", "zpruner/types.py"],
    "search/search": [*COMPOSING, ENERGY, *STATISTICS, *TEXTS, *INVENTORY, "zpruner/model/layers.py"],
    "search/report": [*COMPOSING, ENERGY, *MODELS, *TEXTS, *STATISTICS, "zpruner/evaluate", "zpruner/types.py"],
    "report": [*COMPOSING, ENERGY, *MODELS, *TEXTS, *STATISTICS, "zpruner/types.py"],
}
"""What a stage imports for something that does not change its result."""


def stages():
    found = {}
    for file in ("dvc.yaml", "search/dvc.yaml"):
        graph = YAML(typ="safe", pure=True).load((tiny.REPOSITORY / file).read_text(encoding="utf-8"))["stages"]
        where = "" if file == "dvc.yaml" else f"{Path(file).parent}/"
        found |= {f"{where}{name}": entry.get("do", entry) for name, entry in graph.items()}
    return found


def covered(file, entries):
    return any(file == entry or file.startswith(f"{entry}/") for entry in entries)


def imports(path):
    return {found.relative_to(tiny.REPOSITORY).as_posix() for found in closure.imported(path)}


@pytest.mark.parametrize("name", stages())
def test_every_file_that_decides_a_stages_result_is_a_dependency(name):
    stage = stages()[name]
    module = stage["cmd"].split()[2].replace(".", "/")
    deps = [dep for dep in stage["deps"] if not dep.startswith("data/")]
    unnamed = {
        file
        for file in imports(tiny.REPOSITORY / f"{module}.py")
        if not covered(file, [*deps, *HOW, *NOT_RUN.get(name, [])])
    }
    assert not unnamed
    for dep in deps:
        assert "${" in dep or (tiny.REPOSITORY / dep).exists(), f"{dep} does not exist"


@pytest.mark.parametrize("name", METHODS.names())
def test_a_methods_helpers_are_dependencies_of_the_scores_or_masks(name):
    deps = [*stages()["score"]["deps"], *stages()["mask"]["deps"]]
    own = [f"zpruner/methods/{name}.py"]
    missing = {
        file
        for file in imports(tiny.REPOSITORY / "zpruner" / "methods" / f"{name}.py")
        if not covered(file, [*deps, *HOW, *own])
    }
    assert not missing


def test_closures_are_not_empty():
    found = imports(tiny.REPOSITORY / "stages" / "mask.py")
    assert {"zpruner/masks/_select.py", "zpruner/pruning/sequential.py", "zpruner/calibration/accumulate.py"} <= found
    assert "zpruner/formula/parse.py" in imports(tiny.REPOSITORY / "zpruner" / "methods" / "expression.py")
