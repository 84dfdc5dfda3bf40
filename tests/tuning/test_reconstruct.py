"""Local reconstruction against a float64 reference written out by hand, and what it promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zpruner.errors import InvalidSettingError
from zpruner.tuning import Goal, KeptWeights
from zpruner.tuning.reconstruct import Reconstruct

TOKENS, WIDTH, OUT = 7, 6, 5


def problem(seed, batches=4, noise=0.1, dtype=torch.float32):
    """A linear block `x W^T`, half of whose weights are kept, and targets of other weights."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(OUT, WIDTH, generator=generator)
    keep = torch.rand(OUT, WIDTH, generator=generator) < 0.5
    inputs = [torch.randn(2, TOKENS, WIDTH, generator=generator) for _ in range(batches)]
    targets = [x @ true.T + noise * torch.randn(2, TOKENS, OUT, generator=generator) for x in inputs]
    squares = sum(x.square().sum((0, 1)) for x in inputs)
    kept = {"up": KeptWeights((true * keep).to(dtype), keep, squares)}
    goals = [Goal(y, 0.3 * y) for y in targets]  # what a block is given is as wide as what it puts out
    return kept, lambda weights, index: inputs[index] @ weights["up"].T, goals, inputs, targets


def by_hand(tuning, kept, inputs, targets, epochs):
    """Adam in float64 with the gradient of the loss worked out by hand; the epoch that is best on the last batch.

    Batches come in the order that torch draws.
    """
    start, keep = kept["up"].weight.double().numpy(), kept["up"].keep.numpy()
    squares = kept["up"].squares.double().numpy()
    squares = squares / squares.mean()
    x = [batch.double().numpy().reshape(-1, WIDTH) for batch in inputs]
    y = [batch.double().numpy().reshape(-1, OUT) for batch in targets]
    per_token = [1 / (batch**2).mean(1, keepdims=True) for batch in y]
    trained = list(range(len(x) - 1))
    whole = np.mean([(per_token[i] * (0.3 * y[i] - y[i]) ** 2).sum() for i in trained])
    rate = tuning.rate * math.sqrt((start**2).sum() / keep.sum())
    order = torch.Generator().manual_seed(tuning.seed)
    weight, first, second, step = start.copy(), 0.0, 0.0, 0
    best, least = start, (per_token[-1] * (x[-1] @ start.T - y[-1]) ** 2).sum()
    for _ in range(epochs):
        for i in torch.randperm(len(trained), generator=order).tolist():
            gradient = 2 * ((x[i] @ weight.T - y[i]) * per_token[i]).T @ x[i] / whole
            gradient += 2 * tuning.anchor * (weight - start) * squares / (start**2 @ squares).sum()
            gradient *= keep
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            cosine = (1 + math.cos(math.pi * step / (tuning.epochs * len(trained)))) / 2
            step += 1
            change = first / (1 - 0.9**step) / np.sqrt(second / (1 - 0.999**step) + 1e-300)
            weight = weight - rate * cosine * np.where(keep, change, 0)
        if (lost := (per_token[-1] * (x[-1] @ weight.T - y[-1]) ** 2).sum()) < least:
            best, least = weight, lost
    return best


@pytest.mark.parametrize("anchor", [0.0, 30.0])
def test_the_weights_are_those_of_adam_worked_out_by_hand(anchor):
    kept, run, goals, inputs, targets = problem(0)
    tuning = Reconstruct(rate=0.01, epochs=3, anchor=anchor, seed=5)
    found = tuning.tune(kept, run, goals)["up"]
    assert not torch.equal(found, kept["up"].weight)
    expected = by_hand(tuning, kept, inputs, targets, 3)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_distance_counts_every_token_alike():
    target = torch.tensor([[[3.0, 4.0], [300.0, 400.0]]])
    goal = Goal(target, torch.zeros_like(target))
    assert goal.whole == pytest.approx(2 + 2)  # of each token, its square over its mean square
    assert float(goal.distance(target * torch.tensor([[[1.1], [1.0]]]))) == pytest.approx(0.02)
    assert float(goal.distance(target * torch.tensor([[[1.0], [1.1]]]))) == pytest.approx(0.02)


@example(56, 0.375, 4, torch.float32)  # the last epoch is not the best
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 0.9), st.integers(2, 9), st.sampled_from([torch.float32, torch.bfloat16]))
def test_never_worse_on_what_was_held_out_and_zeros_stay(seed, rate, batches, dtype):
    kept, run, goals, *_ = problem(seed, batches, dtype=dtype)
    found = Reconstruct(rate=rate, epochs=2).tune(kept, run, goals)["up"]
    assert found.dtype == dtype
    assert not found[~kept["up"].keep].any()
    held = [7] if batches > 7 else [batches - 1]

    def lost(weight):
        return sum(float(goals[index].distance(run({"up": weight.float()}, index))) for index in held)

    assert lost(found) <= lost(kept["up"].weight)


def test_no_epoch_is_kept_where_none_helps():
    kept, run, *_ = problem(1, noise=0.0)
    kept = {"up": KeptWeights(kept["up"].weight, torch.ones_like(kept["up"].keep), kept["up"].squares)}
    exact = [Goal(run({"up": kept["up"].weight}, index), torch.zeros(2, TOKENS, OUT)) for index in range(4)]
    assert torch.equal(Reconstruct().tune(kept, run, exact)["up"], kept["up"].weight)


def test_the_target_lies_between_both_outputs():
    replayed, dense = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 4.0)
    assert torch.equal(Reconstruct(share=0.25).target(replayed, dense), torch.ones(1, 2, 3))
    assert not Reconstruct(share=0.0).follows_dense


def test_batches():
    assert [Reconstruct(batch=4).batch_size(*sizes) for sizes in ((32, 8), (32, 2), (5, 8), (2, 8))] == [4, 2, 2, 1]
    with pytest.raises(InvalidSettingError, match="1 calibration window, expected two or more"):
        Reconstruct().batch_size(1, 8)
