"""Gradients from stage to stage: collected where a listed method needs them, used by score and mask."""

import json

import pytest
import staged
import tiny
import torch
from staged import METHOD, SPARSITY

import zpruner
from stages import evaluate, gradients, score
from zpruner.artifacts.store import ArtifactReader
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.model import load_model, take_inventory
from zpruner.parts.registry import Registry
from zpruner.settings.reading import read_params
from zpruner.text import read_windows
from zpruner.types import Stat
from zpruner.updates import WeightUpdate

FORMULA = "mul(abs(mul(W, W)), mms(G))"


def project(root, **changes):
    (root / "formulas").mkdir(parents=True)
    (root / "formulas" / "zero.json").write_text((tiny.REPOSITORY / "formulas" / "pruner_zero.json").read_text())
    formula = {"score": "expression", "settings": {"formula": {"file": "zero.json"}}}
    return staged.make(root, methods={METHOD: formula}, **changes)


def test_no_method_needs_them_so_nothing_is_collected(tmp_path):
    root = staged.run_all(staged.make(tmp_path), "calibrate")
    gradients.run(root)
    assert [p.name for p in (root / "data" / "gradients").iterdir()] == ["index.json"]
    assert json.loads((root / "data" / "plan" / "gradients.json").read_text())["settings"]["wanted"] is False


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
def test_the_stages_prune_as_the_library_does(tmp_path, propagation):
    root = staged.run_all(project(tmp_path, propagation=propagation), "apply")
    stored = ArtifactReader(root / "data" / "gradients", "gradients")
    assert stored.provenance.windows == 6
    model = load_model(root / "data" / "models" / "dense", device="cpu")
    windows, _ = read_windows(root / "data" / "calibration" / "tokens.arrow")
    if propagation == "pruned":
        calibration = None
        layers = zpruner.prune_sequentially(model, windows, method="pruner_zero", sparsity="2:4", batch_size=2)
    else:
        calibration = zpruner.calibrate(model, windows, stats=tiny.WITH_GRADIENTS, batch_size=2)
        layers = zpruner.prune(model, calibration, method="pruner_zero", sparsity="2:4")
    masks = ArtifactReader(root / "data" / "masks" / METHOD / SPARSITY, "masks")
    for layer in layers:
        assert torch.equal(masks.read(layer.name)["keep"], layer.mask.keep)
        grad_sq = stored.read(layer.name)["grad_sq"]
        if calibration is not None:
            assert torch.equal(grad_sq, calibration.stats(layer.name).require(Stat.GRAD_SQ))
    pruned = load_model(root / "data" / "pruned" / METHOD / SPARSITY, device="cpu")
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in model.state_dict().items())


class Curved(WeightUpdate):
    """Scales what is kept by how steep the loss is there: a part that reads gradients and is no score."""

    needs = frozenset({Stat.GRAD_SQ})

    def update(self, weight, keep, stats):
        return weight * keep * (1.0 + stats.require(Stat.GRAD_SQ).sqrt())


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
@pytest.mark.parametrize("score", ["wanda", "sparsegpt"])
def test_any_part_may_read_gradients(tmp_path, monkeypatch, score, propagation):
    find = Registry.find
    monkeypatch.setattr(Registry, "find", lambda self, name: Curved if name == "curved" else find(self, name))
    method = {"score": score, "update": "curved"}
    root = staged.run_all(staged.make(tmp_path, methods={METHOD: method}, propagation=propagation), "apply")
    model = load_model(root / "data" / "models" / "dense", device="cpu")
    windows, _ = read_windows(root / "data" / "calibration" / "tokens.arrow")
    if propagation == "pruned":
        zpruner.prune_sequentially(model, windows, method=method, sparsity="2:4", batch_size=2)
    else:
        calibration = zpruner.calibrate(model, windows, stats=zpruner.needs(method), batch_size=2)
        zpruner.prune(model, calibration, method=method, sparsity="2:4")
    pruned = load_model(root / "data" / "pruned" / METHOD / SPARSITY, device="cpu")
    assert all(torch.equal(value, pruned.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_backward_pass_needs_the_whole_model(tmp_path):
    root = staged.run_all(project(tmp_path), "calibrate")
    staged.change_params(root, "machine.streaming", "always")
    with pytest.raises(InvalidSettingError, match=r"machine\.streaming: got 'always'"):
        gradients.run(root)


def test_weights_and_sums_need_room(tmp_path):
    """The tiny llama is float32; of what is in its blocks there are sums."""
    root = staged.run_all(project(tmp_path), "calibrate")
    checkpoint = Checkpoint(root / "data" / "models" / "dense")
    layers = take_inventory(load_model(checkpoint.folder, device="cpu")).layers
    size = checkpoint.tensor_bytes + 4 * sum(layer.out_features * layer.in_features for layer in layers)
    assert size < 1.9 * checkpoint.tensor_bytes
    staged.change_params(root, "machine.memory", 0.99 * size / 1e9)
    with pytest.raises(InvalidSettingError, match=r"for the model and a float32 sum for every prunable weight"):
        gradients.run(root)
    assert not (root / "data" / "gradients").exists()
    staged.change_params(root, "machine.memory", 1.01 * size / 1e9)
    gradients.run(root)


def test_evaluate_leaves_out_the_histograms(tmp_path):
    root = staged.run_all(project(tmp_path), "apply")
    evaluate.run(METHOD, SPARSITY, root=root)
    assert json.loads((root / f"data/evaluation/{METHOD}/{SPARSITY}.layers.json").read_text())["score_histograms"] == []


def test_score_refuses_gradients_that_are_missing_or_of_another_calibration(tmp_path):
    root = staged.run_all(project(tmp_path), "gradients")
    staged.change_params(root, "calibration.seed", 1)
    for stage in ("fetch-calibration", "calibrate"):
        staged.INSTANCES[stage](root)
    with pytest.raises(ArtifactError, match=r"gradients.*calibration_hash"):
        score.run(METHOD, root)
    without = tiny.read_params(root)["methods"]
    staged.change_params(root, "methods", {"wanda": {"score": "wanda"}})
    gradients.run(root)
    staged.change_params(root, "methods", without)
    with pytest.raises(ArtifactError, match="no gradients: no method needed them"):
        score.run(METHOD, root)


def test_a_setting_may_be_a_file_of_formulas(tmp_path):
    root = project(tmp_path)
    assert read_params(root / "params.yaml").method(METHOD).settings["formula"]["data"] == "mul"
    for name, message in (
        ("zeroo.json", r"methods\.swapped\.settings\.formula\.file: got 'zeroo\.json'.*Did you mean 'zero\.json'"),
        ("../params.yaml", r"got '\.\./params\.yaml', expected a file below .*formulas"),
        ("bad.json", "which is not JSON"),
    ):
        (root / "formulas" / "bad.json").write_text("{")
        staged.change_params(root, f"methods.{METHOD}.settings.formula", {"file": name})
        with pytest.raises(InvalidSettingError, match=message):
            read_params(root / "params.yaml")


@pytest.mark.parametrize(
    ("gram", "score", "propagation", "taken"),
    [
        ("auto", "wanda", "dense", False),
        ("auto", "sparsegpt", "dense", True),
        ("auto", "sparsegpt", "pruned", False),
        (True, "wanda", "dense", True),
        (False, "wanda", "dense", False),
    ],
)
def test_gram_matrices_are_taken_where_a_method_reads_them(tmp_path, gram, score, propagation, taken):
    methods = {METHOD: {"score": score}, "magnitude": {"score": "magnitude"}}
    root = staged.run_all(staged.make(tmp_path, methods=methods, gram=gram, propagation=propagation), "calibrate")
    activations = Activations(root / "data" / "activations" / "dense")
    stats = activations.stats(activations.layers[0].name)
    assert (stats.gram is not None) == taken
    assert stats.sq_sum is not None
