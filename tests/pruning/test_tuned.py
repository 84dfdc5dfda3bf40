"""The last step of a block under pruned propagation."""

import families
import more_families
import pytest
import tiny
import torch
from test_submodules import WINDOWS, solved

import zpruner
from zpruner.calibration import BlockFunction, BlockReplay
from zpruner.errors import InvalidSettingError, ModelStructureError
from zpruner.model import get_weight, take_inventory
from zpruner.pruning.compose import compose_all
from zpruner.settings.params import Params

BASE = {"score": "wanda", "group": "row", "update": "least_squares", "measure": "submodule"}
TUNED = {**BASE, "tune": {"rate": 0.01, "batch": 1}}

SHARING = ("gemma3n, shared keys", "gemma4, shared keys")  # of one block with later ones


def away(model, dense, windows):
    return float((tiny.last_hidden(model, windows) - tiny.last_hidden(dense, windows)).norm())


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_nearer_to_the_unpruned_model(family):
    dense, without, with_it = (tiny.build(family) for _ in range(3))
    plain = solved(without, BASE)
    tuned = solved(with_it, TUNED)
    assert away(with_it, dense, WINDOWS) < 0.97 * away(without, dense, WINDOWS)
    first = [name for name in plain if ".0." in name]
    for name in first:
        # Other batches round the sums differently.
        assert float((plain[name].mask.keep == tuned[name].mask.keep).float().mean()) > 0.99
        assert not torch.equal(plain[name].weight, tuned[name].weight)
    for entry in take_inventory(with_it).layers:
        found = tuned[entry.name]
        assert torch.equal(get_weight(with_it, entry), found.weight)
        assert not found.weight[~found.mask.keep].any()
    others = {name for name, _ in with_it.named_parameters()} - {entry.tensor for entry in take_inventory(dense).layers}
    assert all(torch.equal(with_it.get_parameter(name), dense.get_parameter(name)) for name in others)


def test_what_is_tuned_is_the_block_itself():
    """The function that gradients pass gives the block's own output, for weights however they are stored."""
    for family in ("llama", "gpt2", "gpt_oss"):
        model = tiny.build(family) if family in tiny.FAMILIES else families.build(family)
        inventory = take_inventory(model)
        replay = BlockReplay(model, inventory, WINDOWS[:2] % 57, 1)
        function = BlockFunction(replay, 0)
        weights = {entry.name: get_weight(model, entry) for entry in inventory.layers if entry.block == 0}
        changed = {name: weight * 1.5 for name, weight in weights.items()}
        before = function({}, 1)
        assert torch.equal(function(weights, 1), before)
        assert not torch.allclose(function(changed, 1), before)
        expected = function(changed, 1)
        for name, weight in weights.items():
            weight.copy_(changed[name])
        replay.advance(0)
        assert torch.allclose(replay.hidden[1], expected, atol=1e-5)


@pytest.mark.parametrize("stop", [1, 8])
def test_goes_on_to_the_same_weights(stop):
    whole = solved(tiny.build("llama"), TUNED)
    first = solved(tiny.build("llama"), TUNED, stop=stop)
    assert len(first) == stop
    finished = {name: (lambda found=layer.parameters: found) for name, layer in first.items()}
    rest = solved(tiny.build("llama"), TUNED, finished=finished)
    assert rest.keys() == whole.keys() - first.keys()
    assert all(torch.equal(rest[name].weight, whole[name].weight) for name in rest)
    assert all(torch.equal(first[name].weight, whole[name].weight) for name in first)


def test_without_the_unpruned_models_hidden_states():
    model = tiny.build("llama")
    layers = zpruner.prune_sequentially(model, WINDOWS, method={**TUNED, "tune": {"share": 0.0, "rate": 0.01}})
    assert all(0.4 < layer.sparsity < 0.6 for layer in layers)


def test_is_refused_where_blocks_are_not_pruned_one_after_another():
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs(TUNED))
    with pytest.raises(InvalidSettingError, match="tune: got dense propagation, expected pruned propagation"):
        zpruner.prune(model, calibration, method=TUNED)
    params = Params.model_validate({**tiny.PARAMS, "methods": {"tuned": TUNED}})
    with pytest.raises(InvalidSettingError, match=r"methods\.tuned: tune: got dense"):
        compose_all(params)
    with pytest.raises(InvalidSettingError, match="1 calibration window"):
        zpruner.prune_sequentially(model, WINDOWS[:1], method=TUNED)


@pytest.mark.parametrize("family", ["mixtral", "falcon"])
def test_experts_and_attention_beside_the_mlp(family):
    check_family(family)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families.FAMILIES, *more_families.MORE])
def test_every_family(family):
    check_family(family)


def check_family(family):
    model, windows = families.build(family), WINDOWS[:3, :16] % 57
    method = {"score": "wanda", "group": "row", "tune": {"rate": 0.01, "batch": 1}}
    if family in SHARING:
        with pytest.raises(ModelStructureError, match="for methods with `correct` or `tune`"):
            zpruner.prune_sequentially(model, windows, method=method, min_expert_tokens=2)
        return
    layers = zpruner.prune_sequentially(model, windows, method=method, min_expert_tokens=2)
    inventory = take_inventory(model)
    assert len(layers) == len(inventory.layers)
    for entry, layer in zip(inventory.layers, layers, strict=True):
        assert not get_weight(model, entry)[~layer.mask.keep].any()
