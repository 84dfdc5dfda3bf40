"""Neurons in another order: the model computes the same, and N:M loses less."""

import families
import pytest
import tiny
import torch

import zpruner
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.evaluate.storage import satisfies
from zpruner.masks import kept_sum
from zpruner.model import get_weight, take_inventory
from zpruner.types import SparsityPattern

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
    check_statistics(model, calibration, stats)


def check_statistics(model, calibration, stats):
    """Compare a calibration that was moved with that of the model in its new order."""
    again = zpruner.calibrate(model, WINDOWS, stats=stats, batch_size=2, min_expert_tokens=2)
    for layer in take_inventory(model).layers:
        for (stat, mine), (_, other) in zip(calibration.stats(layer.name), again.stats(layer.name), strict=True):
            scale = float(other.abs().max())
            assert torch.allclose(mine.double(), other.double(), rtol=1e-3, atol=1e-4 * scale), (layer.name, stat)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
def test_the_stream_in_another_order(family):
    model, dense = build(family), build(family)
    stats = tiny.WITH_GRAM | {"grad_sq"}
    calibration = zpruner.calibrate(model, WINDOWS, stats=stats, batch_size=2, min_expert_tokens=2)
    orders = zpruner.permute_stream(model, calibration)
    wanted = tiny.last_hidden(dense, WINDOWS)[..., orders["stream"]]
    torch.testing.assert_close(tiny.last_hidden(model, WINDOWS), wanted, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        ids = WINDOWS.long()
        torch.testing.assert_close(model(ids).logits, dense(ids).logits, rtol=1e-4, atol=1e-4)
    check_statistics(model, calibration, stats)


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


@pytest.mark.parametrize("family", ["llama", "opt", "falcon"])
def test_no_less_is_kept_of_what_is_lost_and_heads_compute_the_same(family):
    model, dense = build(family), build(family)
    calibration = zpruner.calibrate(model, WINDOWS)
    layers = {layer.name: layer for layer in calibration.inventory.layers}

    def kept(name):
        weight = get_weight(model, layers[name]).float()
        return kept_sum(weight.square() * calibration.stats(name).squared_norm(), SparsityPattern.parse("2:4"))

    before = {name: kept(name) for name in layers}
    heads, neurons = zpruner.permute_heads(model, calibration), zpruner.permute_neurons(model, calibration)
    assert heads
    assert neurons
    for name in layers:
        assert kept(name) >= before[name] * (1 - 1e-6), name
        assert kept(name) > before[name] * (1 + 1e-4) or name not in heads | neurons
    torch.testing.assert_close(tiny.last_hidden(model, WINDOWS), tiny.last_hidden(dense, WINDOWS), rtol=1e-4, atol=1e-4)


def test_a_sweep_puts_the_model_back():
    model = tiny.build("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibration = zpruner.calibrate(model, WINDOWS)
    sums = {layer.name: calibration.stats(layer.name).sq_sum.clone() for layer in calibration.inventory.layers}
    plain, ordered = {"score": "wanda"}, {"score": "wanda", "permute": ["heads", "neurons"]}
    rows = zpruner.sweep(model, calibration, methods={"plain": plain, "ordered": ordered}, sparsities=["2:4", 0.5])
    assert rows[2].layer_error < 0.98 * rows[0].layer_error
    assert rows[3].layer_error == rows[1].layer_error  # a ratio leaves the order
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(calibration.stats(name).sq_sum, value) for name, value in sums.items())


@pytest.mark.parametrize("method", [{"score": "ria"}, {"score": "wanda", "refine": "swaps"}, {"score": "sparsegpt"}])
def test_channels_are_n_m_in_an_order_that_comes_with_the_mask(method):
    channels, model = {**method, "permute": "channels"}, tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS, for_methods=channels)
    for layer in zpruner.prune(model, calibration, method=channels, sparsity="2:4"):
        weight, order = model.get_submodule(layer.name).weight, layer.mask.order
        assert satisfies(weight[:, order], 2, 4)
        assert torch.equal(weight != 0, layer.mask.keep)
        kept = layer.mask.keep[:, order].reshape(len(weight), -1, 4).sum(-1)
        assert bool((kept == 2).all())


def test_channels_go_with_nothing_else():
    for permute in (["channels", "heads"], ["heads", "heads"], "columns"):
        with pytest.raises(InvalidSettingError, match="permute"):
            zpruner.needs({"score": "wanda", "permute": permute})


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
