"""Aiming at the dense model's outputs: the statistic, the algebra, and that it helps."""

from __future__ import annotations

import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.calibration import BlockReplay
from zpruner.corrections.qep import Qep
from zpruner.model import PrunableLayer, get_weight, set_weight, take_inventory
from zpruner.types import Stat

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
    whole = Qep(share=1.0, damping=1e-6).correct(weight, stats)
    assert torch.allclose(whole, weight @ change, atol=1e-3)
    half = Qep(share=0.5, damping=1e-6).correct(weight, stats)
    assert torch.allclose(half, (weight + weight @ change) / 2, atol=1e-3)


def test_an_input_that_is_always_zero_needs_none() -> None:
    weight = torch.ones(2, 4)
    stats = zpruner.LayerStats("l", 8, 1, gram=torch.zeros(4, 4), cross=torch.zeros(4, 4))
    assert torch.equal(Qep().correct(weight, stats), weight)


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
