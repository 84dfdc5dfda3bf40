"""Neurons in another order: the model computes the same, and N:M loses less."""

import families
import pytest
import tiny
import torch

import zpruner
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.model import take_inventory

WINDOWS = torch.randint(3, 57, (4, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def build(family):
    return tiny.build(family) if family in tiny.FAMILIES else families.build(family)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "mixtral"])
def test_the_model_computes_the_same_and_the_statistics_are_those_of_the_new_order(family):
    model, dense = build(family), build(family)
    stats = tiny.WITH_GRAM | ({"grad_sq", "effect"} if family == "llama" else set())
    calibration = zpruner.calibrate(model, WINDOWS, stats=stats, batch_size=2, min_expert_tokens=2)
    orders = zpruner.permute_neurons(model, calibration)
    assert orders
    assert any(not torch.equal(model.get_parameter(name), value) for name, value in dense.named_parameters())
    torch.testing.assert_close(tiny.last_hidden(model, WINDOWS), tiny.last_hidden(dense, WINDOWS), rtol=1e-4, atol=1e-4)
    again = zpruner.calibrate(model, WINDOWS, stats=stats, batch_size=2, min_expert_tokens=2)
    for layer in take_inventory(model).layers:
        for (stat, mine), (_, other) in zip(calibration.stats(layer.name), again.stats(layer.name), strict=True):
            scale = float(other.abs().max())
            assert torch.allclose(mine.double(), other.double(), rtol=1e-3, atol=1e-4 * scale), (layer.name, stat)


def test_two_of_four_loses_less_in_what_reads_the_neurons():
    errors = []
    for permuted in (False, True):
        model = tiny.build("llama")
        calibration = zpruner.calibrate(model, WINDOWS, stats=tiny.WITH_GRAM)
        orders = zpruner.permute_neurons(model, calibration) if permuted else {}
        layers = zpruner.prune(model, calibration, method="wanda", sparsity="2:4")
        errors.append({layer.name: layer.layer_error for layer in layers})
    assert set(orders) == {name for name in errors[0] if name.endswith("down_proj")}
    for name in errors[0]:
        if name in orders:
            assert errors[1][name] < 0.95 * errors[0][name]
        else:  # the same rows in another order
            assert errors[1][name] == pytest.approx(errors[0][name], rel=1e-3)


def test_layers_that_stay_dense_stay_as_they_are():
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS, ignore=["*.1.mlp.down_proj"])
    assert not any(".1." in name for name in zpruner.permute_neurons(model, calibration))


def test_what_is_refused():
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS)
    with pytest.raises(InvalidPatternError, match=r"sparsity: got '0\.5', expected N:M"):
        zpruner.permute_neurons(model, calibration, sparsity="0.5")
    with pytest.raises(InvalidPatternError, match="a width that 5 divides"):
        zpruner.permute_neurons(model, calibration, sparsity="2:5")
    zpruner.prune(model, calibration, method="wanda", sparsity="2:4")
    with pytest.raises(InvalidSettingError, match="calibration: got one whose model was pruned"):
        zpruner.permute_neurons(model, calibration)
