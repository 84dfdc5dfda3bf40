import copy
import gc
import weakref

import pytest
import tiny
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from zpruner.calibration import Collection, calibrate, collect, collect_by_block
from zpruner.errors import InvalidSettingError, ModelStructureError, NonFiniteError
from zpruner.execution import WholeRunner
from zpruner.model import take_inventory
from zpruner.types import CHANNEL_SUMS

WINDOWS = torch.randint(0, tiny.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)


def captured(model, windows=WINDOWS):
    """Return every linear layer's inputs (tokens, in) in float64, from hooks of our own on their modules."""
    inputs = {}

    def hook(name):
        def keep(_, args):
            inputs.setdefault(name, []).append(args[0].detach().reshape(-1, args[0].shape[-1]).double())

        return keep

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    with torch.no_grad():
        for window in windows:
            model(window[None].long())
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in inputs.items()}


def owners(calibration):
    return dict(calibration.collection.owner)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_statistics_are_those_of_every_layers_input(family):
    model = tiny.build(family)
    expected = captured(model)
    calibration = calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=2)
    assert calibration.inventory == take_inventory(model)
    for layer in calibration.inventory.layers:
        X, stats = expected[layer.name], calibration.stats(layer.name)
        assert (stats.tokens, stats.windows, stats.layer) == (120, 5, layer.name)
        assert stats.sq_sum.shape == (layer.in_features,)
        torch.testing.assert_close(stats.sq_sum, X.square().sum(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(stats.abs_sum, X.abs().sum(0), rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(stats.max_abs.double(), X.abs().amax(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(stats.gram.double(), X.T @ X, rtol=1e-3, atol=1e-4 * float(X.square().sum(0).max()))
        torch.testing.assert_close(stats.squared_norm().double(), X.square().sum(0) / 5, rtol=1e-4, atol=1e-8)


def test_layers_that_read_the_same_input_share_its_statistics():
    found = owners(calibrate(tiny.build("llama"), WINDOWS))
    block = {name.removeprefix("model.layers.1."): owner for name, owner in found.items() if ".1." in name}
    qkv, mlp = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.gate_proj"
    assert block == {
        "self_attn.q_proj": qkv,
        "self_attn.k_proj": qkv,
        "self_attn.v_proj": qkv,
        "self_attn.o_proj": "model.layers.1.self_attn.o_proj",
        "mlp.gate_proj": mlp,
        "mlp.up_proj": mlp,
        "mlp.down_proj": "model.layers.1.mlp.down_proj",
    }
    calibration = calibrate(tiny.build("opt"), WINDOWS)
    assert len(calibration.collection.accumulators) == 2 * 4
    calibration = calibrate(tiny.build("gpt2"), WINDOWS)
    assert len(calibration.collection.accumulators) == 2 * 4


def test_layers_of_different_inputs_never_share():
    """A layer that changes its input in place before the next reads it."""
    model = tiny.build("llama")
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda _m, args, _o: (args[0].mul_(1.5), None)[1])
    expected = captured(model)
    calibration = calibrate(model, WINDOWS)
    name = "model.layers.0.mlp.up_proj"
    assert owners(calibration)[name] == name
    torch.testing.assert_close(calibration.stats(name).sq_sum, expected[name].square().sum(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_the_batch_size_changes_nothing_beyond_rounding(batch_size):
    model = tiny.build("llama")
    one, two = (
        calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=2),
        calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=batch_size),
    )
    assert owners(one) == owners(two)
    for layer in one.inventory.layers:
        left, right = one.stats(layer.name), two.stats(layer.name)
        assert (left.tokens, left.windows) == (right.tokens, right.windows)
        for name in ("sq_sum", "abs_sum", "max_abs", "gram"):
            a, b = getattr(left, name), getattr(right, name)
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5 * float(a.abs().max()))


def test_bfloat16_activations():
    model = tiny.build("llama").bfloat16()
    expected = captured(model, WINDOWS)
    calibration = calibrate(model, WINDOWS, stats=tiny.WITH_GRAM, batch_size=1)
    for layer in calibration.inventory.layers:
        X, stats = expected[layer.name], calibration.stats(layer.name)
        torch.testing.assert_close(stats.sq_sum, X.square().sum(0), rtol=1e-5, atol=0)
        scale = X.square().sum(0).sqrt()
        assert ((stats.gram.double() - X.T @ X).abs() / torch.outer(scale, scale)).max() < 1e-5


def test_without_gram_none_is_kept():
    stats = calibrate(tiny.build("llama"), WINDOWS).stats("model.layers.0.mlp.down_proj")
    assert stats.gram is None


def test_calibrating_changes_nothing_of_the_model():
    model = tiny.build("llama")
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        logits = model(WINDOWS.long()).logits
    calibrate(model, WINDOWS, stats=tiny.WITH_GRAM)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(WINDOWS.long()).logits, logits)


def test_ignored_layers_are_not_measured():
    calibration = calibrate(tiny.build("llama"), WINDOWS, ignore=["*.q_proj", "*.2.*"])
    assert not any("q_proj" in name or ".2." in name for name in owners(calibration))
    assert owners(calibration)["model.layers.0.self_attn.v_proj"] == "model.layers.0.self_attn.k_proj"
    with pytest.raises(InvalidSettingError, match="matches no layer"):
        calibrate(tiny.build("llama"), WINDOWS, ignore=["*.qproj"])


def test_an_interrupted_collection_goes_on_to_identical_sums():
    model = tiny.build("llama")
    inventory = take_inventory(model)
    whole, parts = Collection(), Collection()
    assert list(collect(model, inventory, WINDOWS, whole, stats=tiny.WITH_GRAM, batch_size=2)) == [2, 4, 5]
    assert next(collect(model, inventory, WINDOWS, parts, stats=tiny.WITH_GRAM, batch_size=2)) == 2
    assert list(collect(model, inventory, WINDOWS, parts, stats=tiny.WITH_GRAM, batch_size=2)) == [4, 5]
    for name, sums in whole.accumulators.items():
        assert all(torch.equal(v, parts.accumulators[name].state()[k]) for k, v in sums.state().items())


def test_nothing_is_switched_between_batches():
    """A caller that stops half way, and whose generator is collected at any later time, leaves no mode behind."""
    model = tiny.build("llama")
    for _ in collect(model, take_inventory(model), WINDOWS, Collection(), stats=tiny.WITH_GRAM, batch_size=2):
        assert torch.is_grad_enabled()
        assert not torch.overrides._get_current_function_mode_stack()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value):
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"weight of layer model\.layers\.1\.self_attn\.v_proj: got NaN or inf"):
        calibrate(model, WINDOWS)


def test_activations_that_are_not_finite_name_the_first_layer_that_reads_them():
    model = tiny.build("llama")
    with torch.no_grad():
        model.model.layers[1].post_attention_layernorm.weight[0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"input of layer model\.layers\.1\.mlp\.gate_proj: got NaN or infinity"):
        calibrate(model, WINDOWS)


def test_a_layer_that_is_never_called():
    model = tiny.build("llama")
    model.model.layers[1].spare = nn.Linear(8, 8)
    with pytest.raises(ModelStructureError, match=r"layer model\.layers\.1\.spare: .*under `ignore`"):
        calibrate(model, WINDOWS)
    assert calibrate(model, WINDOWS, ignore=["*.spare"]).inventory.skipped


def test_statistics_are_freed_as_soon_as_a_block_is_done():
    model = tiny.build("llama")
    inventory, alive = take_inventory(model), []

    def done(block, collection):
        assert not any(found() for found in alive), "an earlier block's"
        alive.extend(weakref.ref(sums.state()["gram"]) for sums in collection.accumulators.values())

    gc.disable()
    try:
        collect_by_block(WholeRunner(model), inventory, WINDOWS, done, stats=tiny.WITH_GRAM, batch_size=2)
    finally:
        gc.enable()
    assert len(alive) > inventory.n_blocks


def test_blocks_that_share_a_weight_are_not_calibrated_one_by_one():
    model = tiny.build("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ModelStructureError, match=r"layers\.2\.mlp\.up_proj\.weight: got a weight that several.*never"):
        collect_by_block(WholeRunner(model), take_inventory(model), WINDOWS, print, stats=CHANNEL_SUMS, batch_size=2)
