"""The stages prune with `best` as the library does, halves of the calibration and all."""

import pytest
import staged
import torch
from staged import METHOD, SPARSITY

import zpruner
from zpruner.model import load_model
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows


@pytest.mark.parametrize("measure", ["dense", "block", "submodule"])
def test_best(tmp_path, measure):
    method = {**PRESETS["best"], "measure": "submodule" if measure == "dense" else measure}
    propagation = "dense" if measure == "dense" else "pruned"
    project = staged.make(tmp_path, methods={METHOD: method}, propagation=propagation, gram="auto")
    root = staged.run_all(project, "apply")
    model = load_model(root / "data" / "models" / "dense", device="cpu")
    windows = read_windows(root / "data" / "calibration" / "tokens.arrow")[0]
    if propagation == "pruned":
        zpruner.prune_sequentially(model, windows, method=method, sparsity="2:4", batch_size=2)
    else:
        calibration = zpruner.calibrate(model, windows, stats=zpruner.needs(method), batch_size=2)
        zpruner.prune(model, calibration, method=method, sparsity="2:4")
    pruned = load_model(root / "data" / "pruned" / METHOD / SPARSITY, device="cpu").state_dict()
    assert all(torch.equal(value, pruned[name]) for name, value in model.state_dict().items())
