"""The stages prune with `best` as the library does, halves of the calibration and all."""

import shutil

import pytest
import staged
import torch
from staged import METHOD, SPARSITY

import zpruner
from zpruner.artifacts.results import CHOSEN
from zpruner.artifacts.store import ArtifactReader
from zpruner.model import load_model
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows

AUTO = {"damping": "auto", "shrinkage": "auto"}


@pytest.mark.parametrize(
    "measure",
    ["dense", "block", "submodule", "allocated", pytest.param("allocated, dense", marks=pytest.mark.slow), "tuned"],
)
def test_best(tmp_path, measure):
    """In bfloat16, as the default model, where a correction is computed in float32."""
    if measure == "tuned":
        method = {**PRESETS["best"], "tune": {"rate": 0.01}}
    elif measure == "allocated":
        method = dict(PRESETS["best_allocated"])
    elif measure == "allocated, dense":  # gradients that no other part reads
        method = {"score": "wanda", "group": "row", "allocate": {"name": "sensitivity"}}
    elif measure == "block":
        update = {"name": "least_squares", "settings": AUTO}
        method = {"score": "admm", "settings": AUTO, "update": update, "correct": {"share": "auto"}}
    else:
        method = {**PRESETS["best"], "measure": "submodule" if measure == "dense" else measure}
    propagation = "dense" if measure.endswith("dense") else "pruned"
    project = staged.make(tmp_path, methods={METHOD: method}, propagation=propagation, gram="auto")
    pattern = "2:4" if measure == "block" else "0.5"  # which depends on what rows count
    staged.change_params(project, f"sparsities.{SPARSITY}", pattern, plan=False)
    staged.change_params(project, "model.dtype", "bfloat16", plan=False)
    root = staged.run_all(project, "apply")
    model = load_model(root / "data" / "models" / "dense", device="cpu")
    windows = read_windows(root / "data" / "calibration" / "tokens.arrow")[0]
    if propagation == "pruned":
        zpruner.prune_sequentially(model, windows, method=method, sparsity=pattern, batch_size=2)
    else:
        calibration = zpruner.calibrate(model, windows, stats=zpruner.needs(method), batch_size=2)
        zpruner.prune(model, calibration, method=method, sparsity=pattern)
    pruned = load_model(root / "data" / "pruned" / METHOD / SPARSITY, device="cpu").state_dict()
    assert all(torch.equal(value, pruned[name]) for name, value in model.state_dict().items())
    masks = ArtifactReader(root / "data" / "masks" / METHOD / SPARSITY, "masks")
    told = {name for facts in masks.files.values() for name in facts.keys() & set(CHOSEN)}
    assert told == {"block": set(CHOSEN), "allocated, dense": set()}.get(measure, {"shrinkage"})


@pytest.mark.parametrize("share", [0.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_blocks_read_one_by_one_are_tuned_to_the_same_bytes(tmp_path, share):
    method = {"score": "wanda", "measure": "submodule", "tune": {"rate": 0.01, "batch": 1, "share": share}}
    whole = staged.make(tmp_path / "whole", propagation="pruned", methods={METHOD: method})
    staged.change_params(whole, "machine.streaming", "never")
    staged.run_all(whole, "mask")
    parts = tmp_path / "parts"
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "data" / "masks")
    shutil.rmtree(parts / "data" / "solved")
    shutil.rmtree(parts / "data" / ".work")
    staged.change_params(parts, "machine.streaming", "always")
    staged.change_params(parts, "machine.memory", 1e-6)  # no room: all hidden states go to disk
    staged.INSTANCES["mask"](parts)
    assert staged.artifacts(parts) == staged.artifacts(whole)
