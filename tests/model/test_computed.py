"""Weights that torch.nn.utils computes from other parameters are named, never skipped in silence."""

import pytest
import tiny
import torch
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import zpruner
from zpruner.errors import ModelStructureError
from zpruner.model import take_inventory

NAME = "model.layers.1.mlp.up_proj"
WAYS = {
    "prune": lambda module: prune.random_unstructured(module, "weight", 0.5),
    "weight norm by hooks": weight_norm,
    "spectral norm by hooks": spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


def computing(way):
    model = tiny.build("llama")
    WAYS[way](model.get_submodule(NAME))
    return model


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("way", WAYS)
def test_a_computed_weight_is_named_unless_it_is_ignored(way):
    model = computing(way)
    with pytest.raises(ModelStructureError, match=rf"layer {NAME}: got a `weight` that the module computes"):
        take_inventory(model)
    windows = torch.arange(64).reshape(2, 32)
    with pytest.raises(ModelStructureError, match=r"or list the layer under `ignore`\."):
        zpruner.calibrate(model, windows)
    left = zpruner.calibrate(model, windows, ignore=["*.up_proj"]).inventory
    assert (f"{NAME}.weight", "computed from other parameters") in left.skipped
    assert not any(NAME in layer.name for layer in left.layers)


def test_what_the_error_says_helps():
    model = computing("prune")
    with pytest.raises(ModelStructureError, match=r"torch\.nn\.utils\.prune\.remove\(module, 'weight'\)"):
        take_inventory(model)
    prune.remove(model.get_submodule(NAME), "weight")
    assert take_inventory(model).layers == take_inventory(tiny.build("llama")).layers
