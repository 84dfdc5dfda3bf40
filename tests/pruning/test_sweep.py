"""A sweep over methods and sparsities, statistics for methods, layers left dense, and what notebooks show."""

from __future__ import annotations

import re
from typing import Any

import pytest
import tiny
import torch

import zpruner
from zpruner.errors import InvalidSettingError, MissingStatisticError, UnknownNameError
from zpruner.types import Stat

WINDOWS = torch.randint(0, 60, (6, 16), generator=torch.Generator().manual_seed(5))
HELD_OUT = torch.randint(0, 60, (3, 16), generator=torch.Generator().manual_seed(6))
METHODS: dict[str, Any] = {"wanda": "wanda", "gpt": "sparsegpt", "zero": {"score": "pruner_zero", "group": "row"}}


@pytest.fixture
def model():
    return tiny.build("llama")


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_sweep_measures_every_variant_and_leaves_the_model_as_it_was(model):
    before = weights_of(model)
    found = zpruner.sweep(model, WINDOWS, methods=METHODS, sparsities=[0.25, "2:4"], windows=HELD_OUT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [(row.method, row.pattern) for row in found] == [(m, s) for m in METHODS for s in ("0.25", "2:4")]
    for row in found:
        single = tiny.build("llama")
        calibration = zpruner.calibrate(single, WINDOWS, for_methods=METHODS[row.method], stats=())
        layers = zpruner.prune(single, calibration, method=METHODS[row.method], sparsity=row.pattern)
        assert row.perplexity == pytest.approx(zpruner.perplexity(single, HELD_OUT), rel=1e-6)
        assert row.sparsity == layers.sparsity
        # SparseGPT's Gram matrix makes the errors of all variants exact, those of a calibration without it are not.
        assert row.seconds > 0
    assert "gpt" in repr(found).splitlines()[3]
    assert found._repr_html_().count("<tr>") == 7


def test_a_sweep_over_a_calibration_restores_a_model_that_was_pruned_before(model):
    calibration = zpruner.calibrate(model, WINDOWS)
    zpruner.prune(model, calibration, method="magnitude", sparsity=0.5)
    before = weights_of(model)
    replaced = dict(calibration.replaced)
    zpruner.sweep(model, calibration, methods=["wanda"], sparsities=[0.75])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert calibration.replaced == replaced


def test_a_sweep_that_fails_restores_the_model_too(model):
    before = weights_of(model)
    calibration = zpruner.calibrate(model, WINDOWS)
    with pytest.raises(MissingStatisticError, match="Name the method in `for_methods`"):
        zpruner.sweep(model, calibration, methods=["wanda", "alps"], sparsities=[0.5])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"methods": ["wonda"]}, UnknownNameError, "wanda"),
        ({"methods": []}, InvalidSettingError, "methods: got none"),
        ({"methods": [{"score": "wanda"}]}, InvalidSettingError, "Give a composition a label"),
        ({"sparsities": []}, InvalidSettingError, "sparsities: got none"),
        ({"sparsities": [1.5]}, zpruner.ZprunerError, "1.5"),
        ({"ignore": ["*.qproj"]}, InvalidSettingError, "qproj.*matches no layer"),
    ],
)
def test_what_a_sweep_refuses(model, changes, error, words):
    with pytest.raises(error, match=words):
        zpruner.sweep(model, WINDOWS, **{"methods": ["wanda"], "sparsities": [0.5], **changes})


def test_for_methods_collects_what_they_read(model):
    one = zpruner.calibrate(model, WINDOWS, for_methods="sparsegpt", stats=())
    assert {stat for stat, _ in one.stats(one.inventory.layers[0].name)} == {Stat.SQ_SUM, Stat.GRAM}
    both = zpruner.calibrate(model, WINDOWS, for_methods=["pruner_zero", {"score": "wanda", "update": "obs"}])
    found = {stat for stat, _ in both.stats(both.inventory.layers[0].name)}
    assert found == {Stat.SQ_SUM, Stat.ABS_SUM, Stat.MAX_ABS, Stat.GRAM, Stat.GRAD_SQ}
    with pytest.raises(UnknownNameError):
        zpruner.calibrate(model, WINDOWS, for_methods=["wonda"])


def test_ignore_is_where_people_look_for_it(model):
    calibration = zpruner.calibrate(model, WINDOWS)
    before = weights_of(model)
    layers = zpruner.prune(model, calibration, method="wanda", sparsity=0.5, ignore=["*.0.*", "*.q_proj"])
    assert not any(".0." in layer.name or layer.name.endswith("q_proj") for layer in layers)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{layer.name}.weight" for layer in layers}
    with pytest.raises(InvalidSettingError, match=r"`ignore`: got '\*\.9\.\*', which matches no layer"):
        zpruner.prune(model, calibration, ignore=["*.9.*"])


def test_results_are_short_in_a_terminal_and_tables_in_a_notebook(model):
    calibration = zpruner.calibrate(model, WINDOWS, for_methods=["sparsegpt"])
    layers = zpruner.prune(model, calibration, method="sparsegpt", sparsity="2:4")
    n = len(layers)
    name = layers[0].name
    assert repr(calibration) == f"Calibration({n} layers, 6 windows: sq_sum, abs_sum, max_abs, gram)"
    assert re.fullmatch(rf"PrunedLayers\({n} layers, sparsity=0.5000, layer_error=0\.\d+\)", repr(layers))
    assert re.fullmatch(rf"PrunedLayer\('{name}', sparsity=0.5000, layer_error=[\d.e-]+\)", repr(layers[0]))
    assert repr(layers[0].mask) == f"Mask('{name}', (32, 32), sparsity=0.5000)"
    assert len(repr(calibration.inventory)) < 100
    assert len(repr(calibration.stats(name))) < 200
    for table, kinds in ((calibration._repr_html_(), 7), (layers._repr_html_(), 7)):
        assert table.count("<tr>") == kinds + 1
        assert "mlp.down_proj" in table
    assert isinstance(layers, tuple)
    assert layers.sparsity == pytest.approx(0.5)


@pytest.mark.parametrize("wrong", ["HuggingFaceTB/SmolLM2-135M", b"x", 3, torch.nn.Identity()])
def test_a_tokenizer_that_is_none_is_one_sentence(model, wrong, tmp_path):
    (tmp_path / "text.txt").write_text("some words " * 100)
    with pytest.raises(InvalidSettingError, match=r"tokenizer: got .*, expected the model's tokenizer itself"):
        zpruner.load_windows(tmp_path / "text.txt", model, wrong, nsamples=1, seqlen=8)
