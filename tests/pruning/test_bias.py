"""The mean of what a layer loses goes into its bias, where it has one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import families
import pytest
import tiny
import torch
from torch import Tensor

import zpruner
from zpruner.errors import MissingStatisticError
from zpruner.model import get_parameters, take_inventory
from zpruner.patterns import parse_pattern
from zpruner.pruning.compose import compose
from zpruner.settings.params import MethodSettings
from zpruner.structures import Couplings, find_couplings

WINDOWS = torch.randint(3, tiny.VOCABULARY, (6, 32), dtype=torch.int32, generator=torch.Generator().manual_seed(2))
FLAP: dict[str, Any] = {"score": "wanda", "structures": {"neurons": "flap", "groups": "flap"}}
SOLVED: dict[str, Any] = {
    "score": "sparsegpt",
    "settings": {"damping": 0.05},
    "structures": {"neurons": "obs"},
    "update": {"name": "least_squares", "settings": {"damping": 0.05, "shrinkage": "auto"}},
}
SEQUENTIAL: dict[str, Any] = {**SOLVED, "correct": {}, "measure": "submodule"}


@pytest.fixture(scope="module", autouse=True)
def found_once() -> Iterator[None]:
    """Finding what can be cut takes a while: of each family it is found once."""
    found: dict[type, Couplings] = {}

    def find(model: Any, blocks: str) -> Couplings:
        if type(model) not in found:
            found[type(model)] = find_couplings(model, blocks)
        return found[type(model)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zpruner.pruning.smaller.find_couplings", find)
        yield


def build(family: str) -> Any:
    """A tiny model whose biases are none of them zero."""
    model = tiny.build(family) if family in tiny.FAMILIES else families.build(family)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.2, generator=generator)
    return model


def pruned(family: str, method: Any, sparsity: str | float, propagation: str = "dense") -> tuple[Any, Any]:
    """Return the pruned model, and what was done to its layers."""
    model = build(family)
    if propagation == "pruned":
        return model, zpruner.prune_sequentially(model, WINDOWS, method=method, sparsity=sparsity, batch_size=2)
    calibration = zpruner.calibrate(model, WINDOWS, for_methods=method, stats={zpruner.Stat.GRAM})
    return model, zpruner.prune(model, calibration, method=method, sparsity=sparsity)


def inputs_of(model: Any, name: str) -> Tensor:
    """Return what a layer of a model reads of the windows, (tokens, in)."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(WINDOWS.long())
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


@pytest.mark.parametrize(
    ("family", "reader"),
    [
        ("opt", "model.decoder.layers.0.fc2"),
        ("gpt2", "transformer.h.0.mlp.c_proj"),
        pytest.param("phi", "model.layers.0.mlp.fc2", marks=pytest.mark.slow),
        pytest.param("starcoder2", "model.layers.0.mlp.c_proj", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("method", [FLAP, SOLVED], ids=["flap", "solved"])
def test_of_the_outputs_the_mean_stays_and_the_rest_loses_no_more(family: str, reader: str, method: Any) -> None:
    dense = build(family)
    x = inputs_of(dense, reader)
    lost: list[float] = []
    for corrects in (True, False):
        model, results = pruned(family, {**method, "correct_bias": corrects}, "neurons:0.5")
        layer = next(layer for layer in take_inventory(dense).layers if layer.name == reader)
        found = next(result for result in results if result.name == reader)
        before, after = (
            get_parameters(dense, layer),
            get_parameters(model, next(layer for layer in take_inventory(model).layers if layer.name == reader)),
        )
        assert before.bias is not None
        assert after.bias is not None
        kept = found.mask.keep.any(0)
        left = (x @ before.weight.T + before.bias) - (x[:, kept] @ after.weight.T + after.bias)
        lost.append(float(left.square().sum()))
        whole = float((x @ before.weight.T).square().sum())
        assert found.layer_error == pytest.approx(lost[-1] / whole, rel=2e-3)
        if corrects:
            assert float(left.mean(0).abs().max()) < 1e-4 * float(x.abs().max())
        else:
            assert torch.equal(before.bias, after.bias)
    assert lost[0] < 0.99 * lost[1]


@pytest.mark.parametrize("propagation", ["dense", "pruned"])
@pytest.mark.parametrize("family", ["opt", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "sparsity"),
    [
        (FLAP, "neurons:0.5"),
        (SEQUENTIAL, "neurons:0.5"),
        (SEQUENTIAL, 0.5),
        ({**SEQUENTIAL, "quantize": {"bits": 4}}, 0.5),
    ],
    ids=["flap", "solved", "unstructured", "quantised"],
)
def test_no_layer_loses_more_than_without(propagation: str, family: str, method: Any, sparsity: Any) -> None:
    """Of the first layers that read what was not pruned yet, which see the same inputs with and without.

    Single weights that go are chosen anew with inputs less their mean, which may lose a little in one layer of many.
    """
    with_, without = (
        {one.name: one for one in pruned(family, {**method, "correct_bias": corrects}, sparsity, propagation)[1]}
        for corrects in (True, False)
    )
    block = take_inventory(build(family)).layers[0].block
    same = [layer.name for layer in take_inventory(build(family)).layers if layer.block == block]
    if propagation == "pruned" and method.get("measure"):
        same = same[:1]
    chosen_alike = isinstance(sparsity, str)
    for name in same:
        assert with_[name].layer_error <= without[name].layer_error * (1.0001 if chosen_alike else 1.03) + 1e-9, name


def test_layers_without_a_bias_are_what_they_were() -> None:
    """Llama has none: the statistics are as they are, and so is the result."""
    with_, without = (pruned("llama", {**SOLVED, "correct_bias": corrects}, 0.5)[0] for corrects in (True, False))
    for one, other in zip(with_.parameters(), without.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_sweep_puts_biases_back() -> None:
    model = build("opt")
    before = copy.deepcopy(model.state_dict())
    zpruner.sweep(model, WINDOWS, methods={"mine": {**FLAP, "correct_bias": True}}, sparsities=[0.5, "neurons:0.25"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tuning_sees_the_biases_and_quantising_comes_last() -> None:
    method = {**SEQUENTIAL, "correct_bias": True, "tune": {"epochs": 1}, "quantize": {"bits": 4}}
    model, _ = pruned("opt", method, 0.5, "pruned")
    plain, _ = pruned("opt", {**method, "correct_bias": False}, 0.5, "pruned")
    dense = build("opt")
    for layer in take_inventory(model).layers:
        new, old, was = (get_parameters(each, layer).bias for each in (model, plain, dense))
        assert new is not None
        assert old is not None
        assert was is not None
        assert torch.equal(old, was)
        assert not torch.equal(new, was)


def test_a_calibration_without_sums_is_told_before_anything_changes() -> None:
    model = build("opt")
    before = copy.deepcopy(model.state_dict())
    calibration = zpruner.calibrate(model, WINDOWS)
    with pytest.raises(MissingStatisticError, match="sum"):
        zpruner.prune(model, calibration, method={"score": "wanda", "correct_bias": True})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_it_reads() -> None:
    found = compose(MethodSettings(score="wanda", update=SOLVED["update"], correct_bias=True))
    assert {"sum", "sum_half", "gram", "gram_half"} <= {stat.value for stat in found.needs}
    composition, pattern = compose(MethodSettings(score="wanda", correct_bias=True)), parse_pattern(0.5)
    assert not composition.ahead(take_inventory(tiny.llama()).layers, pattern)
    assert composition.ahead(take_inventory(tiny.opt()).layers, pattern)
