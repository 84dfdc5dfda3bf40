"""Sparsity of layers by what the loss depends on, against sorted costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.allocations import Unpruned
from zpruner.allocations.sensitivity import Sensitivity
from zpruner.errors import InvalidPatternError, MissingStatisticError
from zpruner.masks import pruned_count
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern

SHAPES = {"a.q": (40, 50), "a.down": (50, 80), "b.q": (40, 50), "b.down": (50, 80)}


def problem(seed=0, louder=(1.0, 30.0, 0.1, 2.0), scale=1.0):
    """Layers whose outputs the loss depends on to different degrees, from row to row as well."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for (name, shape), loud in zip(SHAPES.items(), louder, strict=True):
        squares = torch.rand(shape[1], generator=generator) * 9 + 0.1
        rows = torch.rand(shape[0], 1, generator=generator) * loud * scale
        # What a backward pass gives of independent tokens: the output's square times the input's.
        stats = LayerStats(name, 64, 4, sq_sum=squares.double(), grad_sq=rows * squares)
        found[name] = torch.randn(shape, generator=generator), stats
    return found


def model(found):
    return Unpruned({name: SHAPES[name] for name in found}, dict.fromkeys(found, 0), found.__getitem__)


def costs(weight, stats):
    grad = stats.grad_sq.double().numpy().sum(1, keepdims=True) / stats.sq_sum.numpy().sum()
    return np.sort((weight.double().numpy() ** 2 * stats.sq_sum.numpy() * grad).ravel())


def by_hand(found, sparsity, spread):
    """The threshold on sorted costs, tried one after another, at which the counts add up."""
    every = {name: costs(*layer) for name, layer in found.items()}
    total = sum(len(each) for each in every.values())

    def shares(threshold):
        below = {name: np.searchsorted(each, threshold) / len(each) for name, each in every.items()}
        return {name: float(np.clip(s, sparsity - spread, sparsity + spread)) for name, s in below.items()}

    for threshold in np.sort(np.concatenate(list(every.values()))):
        found_shares = shares(threshold)
        if sum(share * len(every[name]) for name, share in found_shares.items()) >= sparsity * total:
            return found_shares
    raise AssertionError


@pytest.mark.parametrize("spread", [0.08, 0.3])
@pytest.mark.parametrize("sparsity", [0.5, 0.6])
def test_every_layer_loses_up_to_the_same_cost(sparsity, spread):
    found = problem()
    targets = Sensitivity(spread=spread).targets(sparsity, model(found))
    expected = by_hand(found, sparsity, spread)
    assert targets == pytest.approx(expected, abs=0.01)
    assert targets["a.down"] < sparsity < targets["b.q"]
    if spread == 0.3:
        assert all(abs(share - sparsity) < 0.299 for name, share in targets.items() if name in ("a.q", "b.down"))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 0.9), st.floats(0.0, 0.09), st.sampled_from(list(ComparisonGroup)))
def test_the_total_is_exact_and_no_layer_is_further_off_than_asked(seed, sparsity, spread, group):
    found = problem(seed)
    pattern = SparsityPattern(ratio=sparsity)
    patterns = Sensitivity(spread=spread).patterns(pattern, group, model(found))
    sizes = {name: out * width for name, (out, width) in SHAPES.items()}
    pruned = {name: round(patterns[name].sparsity * size) for name, size in sizes.items()}
    rounding = 1 if group is ComparisonGroup.LAYER else max(out for out, _ in SHAPES.values())
    assert 0 <= pruned_count(sum(sizes.values()), sparsity) - sum(pruned.values()) < rounding
    assert all(abs(pruned[name] - sparsity * size) <= spread * size + rounding for name, size in sizes.items())


def test_scales_drop_out():
    expected = Sensitivity().targets(0.5, model(problem()))
    for scale in (1e-20, 1e20):
        assert Sensitivity().targets(0.5, model(problem(scale=scale))) == pytest.approx(expected, abs=2e-3)
    assert Sensitivity(spread=0.0).targets(0.5, model(problem())) == pytest.approx(dict.fromkeys(SHAPES, 0.5))
    assert Sensitivity().targets(0.0, model(problem())) == dict.fromkeys(SHAPES, 0.0)


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
def test_near_the_ends_every_layer_keeps_something(sparsity):
    targets = Sensitivity(spread=0.9).targets(sparsity, model(problem(louder=(1e-9, 1.0, 1e9, 1e18))))
    assert targets["a.q"] == pytest.approx(0.6 if sparsity == 0.1 else 1 - 0.1 / 6)  # all that goes, or the most
    assert min(targets.values()) >= 0.0
    total = sum(targets[name] * out * width for name, (out, width) in SHAPES.items())
    assert total == pytest.approx(sparsity * sum(out * width for out, width in SHAPES.values()), rel=1e-9)


def test_what_met_no_token_keeps_the_common_sparsity():
    found = problem(louder=(1.0, 30.0, 0.0, 2.0))
    targets = Sensitivity().targets(0.5, model(found))
    assert targets["b.q"] == 0.5
    total = sum(targets[name] * out * width for name, (out, width) in SHAPES.items())
    assert total == pytest.approx(0.5 * sum(out * width for out, width in SHAPES.values()), rel=1e-9)
    silent = problem(louder=(0.0,) * 4)
    assert Sensitivity().targets(0.5, model(silent)) == dict.fromkeys(SHAPES, 0.5)
    weight, stats = found["a.q"]
    pruned_before = found | {"a.q": (weight * (weight > 0), stats)}  # zeros cost nothing
    wide = Sensitivity(spread=0.3)
    assert wide.targets(0.5, model(pruned_before))["a.q"] > wide.targets(0.5, model(found))["a.q"] + 0.01


def test_errors():
    with pytest.raises(InvalidPatternError, match="N:M"):
        Sensitivity().check(SparsityPattern(kept=2, group_size=4))
    weight, stats = problem()["a.q"]
    bare = {"a.q": (weight, LayerStats("a.q", 64, 4, sq_sum=stats.sq_sum))}
    with pytest.raises(MissingStatisticError, match="grad_sq"):
        Sensitivity().targets(0.5, model(bare))
