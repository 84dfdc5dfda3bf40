"""Fitness on a real (tiny) model, against a plain float64 reference that builds every pruned model anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

import zpruner
from zpruner.calibration import Calibration
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.methods import METHODS
from zpruner.search import Fitness, parse_formula
from zpruner.search.fitness import PARTS
from zpruner.types import ComparisonGroup, SparsityPattern

PATTERNS = (SparsityPattern(ratio=0.5), SparsityPattern(ratio=0.7), SparsityPattern(kept=2, group_size=4))
FORMULA = "mul(W, add(sqrt(X), G))"


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(0, tiny.VOCABULARY, (5, 24), generator=torch.Generator().manual_seed(1), dtype=torch.int32)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny.build("llama")


@pytest.fixture(scope="module")
def calibration(model: PreTrainedModel) -> Calibration:
    ids = torch.randint(0, tiny.VOCABULARY, (3, 32), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    return zpruner.calibrate(model, ids, stats=tiny.WITH_GRADIENTS)


@pytest.fixture
def fitness(model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor) -> Iterator[Fitness]:
    before = copy.deepcopy(model.state_dict())
    yield make(model, calibration, windows)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def make(model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, *more: PreTrainedModel) -> Fitness:
    return Fitness([model, *more], calibration.inventory, calibration.stats, windows, PATTERNS, batch_size=2)


def reference(model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, group: str = "row") -> float:
    """Return the mean over patterns of the mean loss, in float64, each pattern on a copy pruned by argsort."""
    losses = []
    for pattern in PATTERNS:
        pruned = copy.deepcopy(model).double()
        for layer in calibration.inventory.layers:
            stats = calibration.stats(layer.name)
            weight = pruned.get_parameter(layer.tensor).data
            gradient = 100 * stats.require(zpruner.Stat.GRAD_SQ).double().sqrt()
            norm = (stats.require(zpruner.Stat.SQ_SUM).double() / stats.windows).sqrt()
            scores = weight.abs() * (norm + gradient)
            groups = scores.view(-1, 4) if pattern.is_nm else scores if group == "row" else scores.view(1, -1)
            order = groups.argsort(dim=1, stable=True)
            keep = torch.ones_like(groups)
            keep.scatter_(1, order[:, : math.floor(groups.shape[1] * pattern.sparsity)], 0.0)
            weight *= keep.view_as(weight)
        with torch.no_grad():
            logits = pruned(input_ids=windows.long()).logits[:, :-1].flatten(0, 1)
        losses.append(float(cross_entropy(logits, windows[:, 1:].long().flatten())))
    return sum(losses) / len(losses)


def test_fitness_is_the_mean_log_perplexity_of_the_pruned_models(
    model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, fitness: Fitness
) -> None:
    for count in (1, 3, 5):
        (found,) = fitness([parse_formula(FORMULA)], count)
        assert found.fitness == pytest.approx(reference(model, calibration, windows[:count]), rel=1e-5)
        assert tuple(found.parts) == PARTS
        assert min(found.parts.values()) > 0
    by_layer = Fitness(
        [model], calibration.inventory, calibration.stats, windows, PATTERNS, ComparisonGroup.LAYER, batch_size=3
    )
    (whole,) = by_layer([parse_formula(FORMULA)], 5)
    assert whole.fitness == pytest.approx(reference(model, calibration, windows, "layer"), rel=1e-5)
    assert whole.fitness != pytest.approx(found.fitness, rel=1e-3)


def test_formulas_do_not_influence_each_other_and_devices_share_them(
    model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, fitness: Fitness
) -> None:
    texts = ("W", "mul(W, sqrt(X))", "G", "exp(exp(mul(G, G)))", "mul(W, G)", "neg(W)")
    formulas = [parse_formula(text) for text in texts]
    alone = [next(fitness([formula], 2)).fitness for formula in formulas]
    together = [found.fitness for found in fitness(formulas, 2)]
    assert math.isnan(alone[3])
    assert str(alone) == str(together)
    assert len(set(map(str, alone))) == len(texts)
    other = copy.deepcopy(model)
    spread = make(model, calibration, windows, other)
    assert str([found.fitness for found in spread(formulas, 2)]) == str(alone)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_weights_are_back_when_a_caller_stops_or_the_model_fails(
    model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, fitness: Fitness
) -> None:
    before = model.get_parameter("model.layers.0.mlp.up_proj.weight").clone()
    running: Any = fitness([parse_formula("W"), parse_formula("X")], 1)
    next(running)
    assert int((model.get_parameter("model.layers.0.mlp.up_proj.weight") == 0).sum()) > 0
    running.close()
    assert torch.equal(model.get_parameter("model.layers.0.mlp.up_proj.weight"), before)
    bad = make(model, calibration, torch.full((1, 8), tiny.VOCABULARY, dtype=torch.int32))
    with pytest.raises(IndexError):
        list(bad([parse_formula("W")], 1))


def method_of(name: str) -> Any:
    return METHODS.find(name)()


def test_a_method_is_measured_as_its_formula(fitness: Fitness) -> None:
    for name, formula in (("wanda", "mul(W, sqrt(X))"), ("pruner_zero", "mul(mul(W, W), mms(G))")):
        (as_formula,) = fitness([parse_formula(formula)], 3)
        assert fitness.of_method(method_of(name), 3).fitness == pytest.approx(as_formula.fitness, rel=1e-6)
    # Magnitude compares weights within the layer: its default group, and not the search's.
    (by_row,) = fitness([parse_formula("W")], 3)
    assert fitness.of_method(method_of("magnitude"), 3).fitness != pytest.approx(by_row.fitness, rel=1e-6)


def test_what_cannot_be_measured_is_told_at_once(
    model: PreTrainedModel, calibration: Calibration, windows: torch.Tensor, fitness: Fitness
) -> None:
    with pytest.raises(InvalidSettingError, match=r"6 windows asked for, expected at most 5"):
        next(fitness([parse_formula("W")], 6))
    pattern = SparsityPattern(kept=3, group_size=7)
    with pytest.raises(InvalidPatternError, match="q_proj"):
        Fitness([model], calibration.inventory, calibration.stats, windows, [pattern])
