"""The library inside other people's programs: whatever they have switched on, the numbers are the model's own."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import zpruner
from zpruner.errors import ModelStructureError
from zpruner.types import Stat

pytestmark = [  # of what these tests import and call
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated"),
]


WINDOWS = torch.randint(3, tiny.VOCABULARY, (4, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int32)


def dropping() -> GPT2LMHeadModel:
    """A model with dropout, in training mode but for one block."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = GPT2LMHeadModel(config).train()
    model.transformer.h[0].eval()
    return model


def numbers(model) -> tuple[list[torch.Tensor], list[float]]:
    """What every public function makes of a model: masks, errors, perplexities."""
    found = [zpruner.perplexity(model, WINDOWS, batch_size=2)]
    calibration = zpruner.calibrate(model, WINDOWS, stats=[Stat.GRAM, Stat.GRAD_SQ], batch_size=2)
    layers = [*zpruner.prune(model, calibration, method="pruner_zero", sparsity=0.4)]
    layers += zpruner.prune_sequentially(model, WINDOWS, method="sparsegpt", sparsity=0.6, batch_size=2)
    found.append(zpruner.perplexity(model, WINDOWS, batch_size=2))
    errors = [layer.layer_error for layer in layers if not math.isnan(layer.layer_error)]
    return [layer.mask.keep for layer in layers], [*found, *errors]


@pytest.fixture(scope="module")
def expected():
    return numbers(dropping().eval())


def as_dropping(change=lambda model: None):
    model = dropping()
    change(model)
    return model


def checkpointed(model):
    model.gradient_checkpointing_enable()


def frozen(model):
    model.requires_grad_(False)


def hidden(model):
    model.config.output_hidden_states = True


def tuples(model):
    model.config.return_dict = False


def compiled(model):
    model.compile(backend="eager")
    model.transformer.h[1].compile(backend="eager")


CHANGED = [checkpointed, frozen, hidden, tuples, compiled]


@pytest.mark.parametrize("around", [nullcontext, torch.inference_mode, torch.no_grad, "autocast", "deterministic"])
def test_the_state_of_torch_changes_nothing(around, expected):
    model = dropping()
    before = [
        (module.training, parameter.requires_grad) for module in model.modules() for parameter in module.parameters()
    ]
    contexts: dict[object, Any] = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "deterministic": nullcontext,
    }
    torch.use_deterministic_algorithms(around == "deterministic")
    try:
        with contexts.get(around, around)():
            state = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
            assert_same(numbers(model), expected)
            assert state == (
                torch.is_grad_enabled(),
                torch.is_inference_mode_enabled(),
                torch.is_autocast_enabled("cpu"),
            )
    finally:
        torch.use_deterministic_algorithms(False)
    assert before == [
        (module.training, parameter.requires_grad) for module in model.modules() for parameter in module.parameters()
    ]


@pytest.mark.parametrize("change", CHANGED)
def test_the_state_of_a_model_changes_nothing(change, expected):
    model = as_dropping(change)
    config = copy.deepcopy(model.config.to_dict())
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert_same(numbers(model), expected)
    assert model.config.to_dict() == config
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(parameter.grad is None for parameter in model.parameters())


def assert_same(found, expected):
    assert all(map(torch.equal, found[0], expected[0]))
    assert found[1] == expected[1]


def test_a_model_made_and_run_in_inference_mode():
    def wanda(model):
        return [layer.mask.keep for layer in zpruner.prune_sequentially(model, WINDOWS, method="wanda")]

    expected = wanda(tiny.build("llama"))
    with torch.inference_mode():
        model = tiny.build("llama")
    assert all(map(torch.equal, wanda(model), expected))
    assert all(parameter.is_inference() for parameter in model.parameters())
    with pytest.raises(ModelStructureError, match=r"torch\.inference_mode, of which there are no gradients"):
        zpruner.calibrate(model, WINDOWS, stats=[Stat.GRAD_SQ])
    with pytest.raises(ModelStructureError, match=r"layers\.0\.\S+: .*torch\.inference_mode, of which"):
        zpruner.calibrate(model, WINDOWS, stats=["effect"])
    model = tiny.build("llama")
    effects = zpruner.calibrate(model, WINDOWS, stats=["effect"]).collection.effect
    model.model.forward = torch.inference_mode()(model.model.forward)
    found = zpruner.calibrate(model, WINDOWS, stats=["effect"]).collection.effect
    assert all(torch.equal(value, found[name]) for name, value in effects.items())
    assert all(map(torch.equal, wanda(model), expected))
    calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs("wanda"))
    assert sum(layer.sparsity for layer in zpruner.prune(model, calibration, method="wanda")) > 0
    with pytest.raises(ModelStructureError, match="forward code that switches gradients off"):
        zpruner.calibrate(model, WINDOWS, stats=[Stat.GRAD_SQ])


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("function", [zpruner.calibrate, zpruner.prune_sequentially, zpruner.perplexity])
def test_wrappers_are_named_with_what_they_wrap(function):
    model = tiny.build("llama")
    with pytest.raises(ModelStructureError, match=r"Wrapped, expected a transformers model\. Pass .*: model\.module"):
        function(Wrapped(model), WINDOWS)
    with pytest.raises(ModelStructureError, match=r"OptimizedModule, .*: model\._orig_mod"):
        function(torch.compile(model), WINDOWS)
    for other in ("folder", None, nn.Linear(2, 2)):
        with pytest.raises(ModelStructureError, match=r"Load it with zpruner\.load"):
            function(other, WINDOWS)


def test_a_second_prune_of_one_model_is_measured_against_the_dense_weights():
    model = tiny.build("llama")
    calibration = zpruner.calibrate(model, WINDOWS, stats=zpruner.needs("wanda"))
    first = zpruner.prune(model, calibration, method="wanda", sparsity=0.5)
    same = zpruner.prune(model, calibration, method="wanda", sparsity=0.5)
    assert [layer.layer_error for layer in same] == [layer.layer_error for layer in first]
    assert {layer.zeros_before for layer in first} == {0.0}
    assert all(layer.zeros_before == pytest.approx(0.5) for layer in same)
    more = zpruner.prune(model, calibration, method="wanda", sparsity=0.7)
    fresh = zpruner.prune(tiny.build("llama"), calibration, method="wanda", sparsity=0.7)
    assert [layer.layer_error for layer in more] == pytest.approx([layer.layer_error for layer in fresh])
    again = zpruner.prune_sequentially(model, WINDOWS, method="wanda", sparsity=0.7)
    assert all(math.isnan(layer.layer_error) for layer in again)  # nobody knows the dense weights here
    once_more = zpruner.prune(model, zpruner.calibrate(model, WINDOWS), method="wanda", sparsity=0.75)
    assert all(math.isnan(layer.layer_error) and layer.zeros_before > 0.6 for layer in once_more)
    for layer in once_more:
        assert layer.sparsity == pytest.approx(0.75, abs=0.02)
