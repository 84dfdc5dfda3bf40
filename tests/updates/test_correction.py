"""Aiming at the dense model's outputs: the statistic, the algebra, and that it helps."""

from __future__ import annotations

from dataclasses import replace

import families
import pytest
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.calibration import BlockReplay
from zpruner.calibration.calls import hidden_of
from zpruner.corrections.qep import Qep
from zpruner.model import PrunableLayer, get_weight, set_weight, take_inventory
from zpruner.pruning.compose import compose
from zpruner.pruning.sequential import SolvedLayer, prune_blocks
from zpruner.settings.params import MethodSettings
from zpruner.types import SparsityPattern, Stat

WINDOWS = torch.randint(0, tiny.VOCABULARY, (6, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(1))


def test_cross_is_the_product_of_dense_and_pruned_inputs() -> None:
    model, dense, pruned = (tiny.build("llama") for _ in range(3))
    inventory = take_inventory(model)
    method = {"score": "wanda", "group": "row", "correct": {"share": 0.0}}
    layers = zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=0.7, batch_size=2)
    found = {}
    replay = BlockReplay(pruned, inventory, WINDOWS, 2, follow_dense=True)
    by_name = {layer.name: layer for layer in layers}
    for block in range(inventory.n_blocks):
        collection = replay.measure(block, stats={Stat.CROSS})
        for layer in (entry for entry in inventory.layers if entry.block == block):
            found[layer.name] = collection.stats(layer.name).cross
            set_weight(pruned, layer, get_weight(pruned, layer) * by_name[layer.name].mask.keep)
        replay.advance(block)
    for layer in inventory.layers:  # `model` is pruned now; `dense` is not
        expected = _inputs(dense, layer.name).T @ _inputs_with_block_dense(model, dense, layer)
        assert torch.allclose(found[layer.name].double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_linear_change_of_the_input_is_undone() -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(5, 8, generator=generator)
    inputs = torch.randn(8, 400, generator=generator)
    change = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=generator)
    unpruned = change @ inputs
    stats = zpruner.LayerStats("l", 400, 4, gram=inputs @ inputs.T, cross=unpruned @ inputs.T)
    whole = Qep(share=1.0, damping=1e-6).correct(weight, stats).weight
    assert torch.allclose(whole, weight @ change, atol=1e-3)
    half = Qep(share=0.5, damping=1e-6).correct(weight, stats).weight
    assert torch.allclose(half, (weight + weight @ change) / 2, atol=1e-3)


def test_an_input_that_is_always_zero_needs_none() -> None:
    weight = torch.ones(2, 4)
    stats = zpruner.LayerStats("l", 8, 1, gram=torch.zeros(4, 4), cross=torch.zeros(4, 4))
    assert torch.equal(Qep().correct(weight, stats).weight, weight)


def of_halves(weight: Tensor, unpruned: Tensor, inputs: Tensor) -> zpruner.LayerStats:
    """Return the statistics of inputs (in, tokens), of which the first half is apart."""
    half = inputs.shape[1] // 2
    return zpruner.LayerStats(
        "l",
        inputs.shape[1],
        4,
        gram=inputs @ inputs.T,
        gram_half=inputs[:, :half] @ inputs[:, :half].T,
        cross=unpruned @ inputs.T,
        cross_half=unpruned[:, :half] @ inputs[:, :half].T,
    )


def test_the_share_is_what_the_second_half_supports() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, inputs = torch.randn(5, 8, generator=generator), torch.randn(8, 600, generator=generator)
    change = torch.eye(8) + 0.3 * torch.randn(8, 8, generator=generator)
    moved = change @ inputs
    auto = Qep(share="auto", damping=0.1)
    assert auto.correct(weight, of_halves(weight, moved, inputs)).chosen == {"share": 0.3}  # all of it would hold
    # On the second half the input changed by a tenth as much, or the other way.
    for factor, expected in ((0.1, 0.1), (-1.0, 0.0)):
        second = moved.clone()
        second[:, 300:] = inputs[:, 300:] + factor * (change - torch.eye(8)) @ inputs[:, 300:]
        stats = of_halves(weight, second, inputs)
        found = auto.correct(weight, stats)
        assert found.chosen["share"] == pytest.approx(expected, abs=0.03)
        fixed = Qep(share=found.chosen["share"], damping=0.1).correct(weight, stats)
        assert torch.equal(found.weight, fixed.weight)
        assert not fixed.chosen
        # It is where the loss on the second half is least, along what the first half would have.
        half = replace(stats, gram=stats.gram_half, cross=stats.cross_half)
        direction = Qep(share=1.0, damping=0.1).correct(weight, half).weight - weight

        def lost(share: float, direction: Tensor = direction, second: Tensor = second) -> float:
            outputs = (weight + share * direction) @ inputs[:, 300:]
            return float((weight @ second[:, 300:] - outputs).square().sum())

        share = found.chosen["share"]
        assert lost(share) == min(lost(one) for one in (share, 0.0, share + 0.02, 0.2, 0.3))


def test_a_half_that_saw_nothing_supports_no_share() -> None:
    weight, inputs = torch.ones(2, 4), torch.randn(4, 40, generator=torch.Generator().manual_seed(5))
    for silent in (slice(0, 20), slice(20, 40)):
        some = inputs.clone()
        some[:, silent] = 0.0
        found = Qep(share="auto").correct(weight, of_halves(weight, 2 * some, some))
        assert found.chosen == {"share": 0.0}
        assert torch.equal(found.weight, weight)


def test_all_that_chooses_itself_is_told_with_the_mask() -> None:
    settings = {"damping": "auto", "shrinkage": "auto"}
    method = {
        "score": "admm",
        "settings": settings,
        "update": {"name": "least_squares", "settings": settings},
        "correct": {"share": "auto"},
    }
    layers = zpruner.prune_sequentially(tiny.build("llama"), WINDOWS, method=method, sparsity=0.5, batch_size=2)
    first, last = layers[0].mask.chosen, layers[-1].mask.chosen
    assert first["share"] == 0.0  # no block before it was pruned
    assert last.keys() == {"damping", "shrinkage", "share"}
    assert 0.0 <= last["share"] <= 0.3
    assert last["damping"] >= 0.1
    assert last["shrinkage"] >= 0.2


def test_it_brings_the_pruned_model_nearer_to_the_dense_one() -> None:
    base = {"score": "wanda", "group": "row", "update": "least_squares"}
    dense = tiny.last_hidden(tiny.build("llama"), WINDOWS)
    away = []
    for method in (base, {**base, "correct": {}}):
        model = tiny.build("llama")
        zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=0.6)
        away.append(float((tiny.last_hidden(model, WINDOWS) - dense).norm()))
    assert away[1] < 0.98 * away[0]


def _inputs(model: PreTrainedModel, name: str) -> Tensor:
    """What a linear layer reads in a forward pass, float64 (tokens, in)."""
    found: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _module, args: found.append(args[0]))
    with torch.no_grad():
        model(input_ids=WINDOWS.long(), use_cache=False)
    handle.remove()
    return found[0].double().reshape(-1, found[0].shape[-1])


def _inputs_with_block_dense(model: PreTrainedModel, dense: PreTrainedModel, layer: PrunableLayer) -> Tensor:
    """What a layer reads with the earlier blocks pruned and its own block dense."""
    mixed = tiny.build("llama")
    for other in take_inventory(mixed).layers:
        set_weight(mixed, other, get_weight(model if other.block < layer.block else dense, other))
    return _inputs(mixed, layer.name)


def test_what_the_residual_stream_has_lost_is_aimed_at() -> None:
    generator = torch.Generator().manual_seed(3)
    weight, lost = torch.randn(5, 8, generator=generator), torch.randn(5, 8, generator=generator)
    inputs = torch.randn(8, 400, generator=generator)
    gram = inputs @ inputs.T
    # The stream has lost a linear function of the input: all of it can be put back.
    stats = zpruner.LayerStats("l", 400, 4, gram=gram, cross=gram, drift=lost @ gram)
    assert torch.allclose(Qep(damping=1e-6, stream=0.5).correct(weight, stats).weight, weight + 0.5 * lost, atol=1e-3)
    assert torch.equal(Qep(stream=0.5).correct(weight, replace(stats, drift=None)).weight, weight)
    assert Stat.DRIFT in Qep(stream=0.5).required() - Qep().required()


ENDS = {  # where a layer's output is added: to the block's input, or to what would be its output without it
    "llama": {"self_attn.o_proj": "input", "mlp.down_proj": "output"},
    "gpt2": {"attn.c_proj": "input", "mlp.c_proj": "output"},
    "opt": {"self_attn.out_proj": "input", "fc2": "output"},
    "falcon": {"self_attention.dense": "input", "mlp.dense_4h_to_h": "input"},  # attention beside the MLP
    "gemma2": {},  # a norm comes between
}


@pytest.mark.parametrize("family", ENDS)
@pytest.mark.parametrize("measure", ["block", "submodule"])
def test_drift_is_of_the_stream_that_a_layer_ends_on(family: str, measure: str) -> None:
    build = tiny.build if family in tiny.FAMILIES else families.build
    model, dense, windows = build(family), build(family), WINDOWS % 57
    found: dict[str, SolvedLayer] = {}
    method = {"score": "wanda", "group": "row", "correct": {"stream": 0.5}, "measure": measure}
    composition, inventory = compose(MethodSettings(**method)), take_inventory(model)
    patterns = dict.fromkeys((layer.name for layer in inventory.layers), SparsityPattern(ratio=0.5))

    def solved(layer: SolvedLayer) -> None:
        found[layer.mask.layer] = layer

    for _ in prune_blocks(model, inventory, windows, composition, patterns, batch_size=2, solved=solved):
        pass
    assert {layer.kind for layer in inventory.layers if found[layer.name].stats.drift is not None} == set(ENDS[family])
    parts = [part.layers for part in _replayed(build(family), windows).parts(1)]
    for layer in (entry for entry in inventory.layers if entry.block == 1 and entry.kind in ENDS[family]):
        partly = build(family)
        reached = next(number for number, part in enumerate(parts) if layer in part)
        before = [other for part in parts[:reached] for other in part]
        for other in inventory.layers:
            if other.block == 0 or (measure == "submodule" and other in before):
                set_weight(partly, other, found[other.name].weight)
        x, stream = _ends(partly, layer, windows, ENDS[family][layer.kind])
        expected = (_ends(dense, layer, windows, ENDS[family][layer.kind])[1] - stream).T @ x
        drift = found[layer.name].stats.drift
        assert drift is not None
        assert torch.allclose(drift.double(), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def _replayed(model: PreTrainedModel, windows: Tensor) -> BlockReplay:
    replay = BlockReplay(model, take_inventory(model), windows, 2)
    replay.advance(0)
    return replay


def _ends(model: PreTrainedModel, layer: PrunableLayer, windows: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Return what a layer reads, and what its output is added to: float64 (tokens, in) and (tokens, out)."""
    module, block = model.get_submodule(layer.name), model.get_submodule(layer.name.removesuffix(f".{layer.kind}"))
    inputs: list[Tensor] = []
    streams: list[Tensor] = []
    handles = [module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, -2)))]
    if where == "input":
        handles.append(block.register_forward_pre_hook(lambda _, args: streams.append(args[0].flatten(0, 1))))
    else:
        handles.append(module.register_forward_hook(lambda _m, _a, result: result * 0))
        handles.append(block.register_forward_hook(lambda _m, _a, result: streams.append(hidden_of(result))))
    with torch.no_grad():
        for batch in windows.split(2):
            model.base_model(input_ids=batch.long(), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.cat(inputs).double(), torch.cat([one.reshape(-1, layer.out_features) for one in streams]).double()
