"""Layers that a block calls more than once, and weights that it casts before it multiplies by them."""

from types import MethodType

import pytest
import tiny
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear

import zpruner
from zpruner.errors import ModelStructureError
from zpruner.model.products import Products, memory_of

WINDOWS = torch.randint(0, tiny.VOCABULARY, (4, 16), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
UP, GATE = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.gate_proj"


def model_with(forward, dtype=torch.float32):
    model = tiny.build("llama").to(dtype)
    model.model.layers[1].mlp.forward = MethodType(forward, model.model.layers[1].mlp)
    return model


def sharer_twice(self, x):
    return self.down_proj(self.gate_proj(x) * self.up_proj(x) + self.up_proj(2 * x))


def owner_twice(self, x):
    return self.down_proj(self.gate_proj(x) * self.gate_proj(2 * x) + self.up_proj(x))


def same_twice(self, x):
    gate = self.gate_proj(x)
    return self.down_proj(gate * self.gate_proj(x) * self.up_proj(x))


def owner_twice_after_all(self, x):
    return self.down_proj(self.gate_proj(x) * self.up_proj(x) + self.gate_proj(2 * x))


@pytest.mark.parametrize(
    ("forward", "twice", "once", "times"),
    [
        (sharer_twice, UP, GATE, 5),
        (owner_twice, GATE, UP, 5),
        (owner_twice_after_all, GATE, UP, 5),
        (same_twice, GATE, UP, 2),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_all_that_a_layer_reads_counts(forward, twice, once, times, batch_size):
    usual = zpruner.calibrate(tiny.build("llama"), WINDOWS, stats=tiny.WITH_GRAM).stats(UP)
    found = zpruner.calibrate(model_with(forward), WINDOWS, stats=tiny.WITH_GRAM, batch_size=batch_size)
    assert (found.stats(once).tokens, found.stats(twice).tokens) == (usual.tokens, 2 * usual.tokens)
    for stat in ("gram", "sq_sum"):
        for layer, factor in ((once, 1), (twice, times)):
            expected = factor * getattr(usual, stat)
            torch.testing.assert_close(getattr(found.stats(layer), stat), expected, rtol=1e-4, atol=1e-3)


def test_sharing_that_changes_is_refused():
    calls = []

    def sometimes(self, x):
        calls.append(0)
        first = self.gate_proj(x)
        return self.down_proj(first * (self.gate_proj(2 * x) if len(calls) > 1 else first) + self.up_proj(x))

    with pytest.raises(ModelStructureError, match=r"an input that is not the one it shared with .*up_proj earlier"):
        zpruner.calibrate(model_with(sometimes), WINDOWS, batch_size=2)


def test_a_comparison_with_the_unpruned_input_needs_one():
    method = {"score": "sparsegpt", "update": "obs", "correct": {}}
    with pytest.raises(ModelStructureError, match="up_proj: got more than one input in a forward pass"):
        zpruner.prune_sequentially(model_with(sharer_twice), WINDOWS, method=method, sparsity=0.5)


@pytest.mark.parametrize("name", ["float", "double"])
def test_a_product_with_a_cast_weight_is_one_with_the_weight(name):
    def cast(self, x):
        up = linear(getattr(x, name)(), getattr(self.up_proj.weight, name)()).to(x.dtype)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * up)

    found = zpruner.calibrate(model_with(cast, torch.bfloat16), WINDOWS)
    usual = zpruner.calibrate(tiny.build("llama").bfloat16(), WINDOWS)
    assert found.stats(UP).tokens == usual.stats(UP).tokens
    torch.testing.assert_close(found.stats(UP).sq_sum, usual.stats(UP).sq_sum)


def test_what_a_weight_was_cast_to_is_not_kept():
    weight, seen = torch.ones(3, 2), []
    with Products([memory_of(weight)], lambda found, _: seen.append(found.data_ptr())):
        for _ in range(3):
            cast = weight.double()
            linear(torch.ones(1, 2, dtype=torch.float64), cast)
            alive = StorageWeakRef(cast.untyped_storage())
            del cast
            assert alive.expired()
            other = torch.ones(3, 2, dtype=torch.float64)  # very likely where the cast was
            linear(torch.ones(1, 2, dtype=torch.float64), other)
    assert seen == [weight.data_ptr()] * 3
