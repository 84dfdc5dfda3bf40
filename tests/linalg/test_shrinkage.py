"""Shrinkage that two halves of a calibration agree on: right in size, and never a loss on other text."""

import pytest
import torch

from zpruner.linalg import choose_regularisation
from zpruner.methods.admm import Admm
from zpruner.types import LayerStats, SparsityPattern
from zpruner.updates.least_squares import LeastSquares
from zpruner.updates.obs import Obs

OUT, WIDTH, HALF = 48, 96, SparsityPattern(ratio=0.5)


def problem(tokens, seed=0):
    """Weight, Gram matrix of `tokens` inputs and of the first half of them, and the true covariance."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5 + torch.eye(WIDTH)
    mix = mix * torch.logspace(-0.5, 0.5, WIDTH).unsqueeze(1)
    x = mix @ torch.randn(WIDTH, tokens, generator=generator)
    half = x[:, : tokens // 2]
    return torch.randn(OUT, WIDTH, generator=generator), x @ x.T, half @ half.T, mix @ mix.T


def wanda(weight, gram):
    score = (weight * gram.diagonal().sqrt()).abs()
    return score > score.flatten().kthvalue(score.numel() // 2).values


def loss(weight, pruned, covariance):
    change = weight - pruned
    return float((change @ covariance * change).sum() / (weight @ covariance * weight).sum())


def shrinkage_of(weight, keep, gram, half):
    damping, shrinkage = choose_regularisation(weight, keep, gram, half, 0.01, "auto", "layer")
    assert damping == 0.01
    return shrinkage


def chosen(tokens, seed=0):
    weight, gram, half, _ = problem(tokens, seed)
    return shrinkage_of(weight, wanda(weight, gram), gram, half)


def test_the_fewer_tokens_the_more():
    found = [chosen(tokens) for tokens in (96, 400, 4000, 100_000)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.2
    assert found[-1] == 0.2  # the least, however many


@pytest.mark.parametrize("tokens", [24, 60, 130, 1000, 20_000])
@pytest.mark.parametrize("seed", range(2))
def test_the_update_is_no_worse_than_scores_alone_on_what_it_has_not_seen(tokens, seed):
    weight, gram, half, covariance = problem(tokens, seed)
    stats = LayerStats("layer", tokens, 4, gram=gram, gram_half=half)
    scores_alone = loss(weight, weight * wanda(weight, gram), covariance)
    keep = wanda(weight, gram)
    updated = loss(weight, LeastSquares(shrinkage="auto").update(weight, keep, stats), covariance)
    swept = loss(weight, Obs(shrinkage="auto").update(weight, keep, stats), covariance)
    assert swept <= 1.02 * scores_alone
    solved = Admm().solve(weight, stats, HALF).keep
    both = loss(weight, LeastSquares(shrinkage="auto").update(weight, solved, stats), covariance)
    assert updated <= 1.01 * scores_alone
    assert both <= 1.01 * scores_alone


@pytest.mark.parametrize("tokens", [60, 130, 200])
def test_with_few_tokens_it_is_near_the_best_fixed_one(tokens):
    weight, gram, half, covariance = problem(tokens)
    stats, keep = LayerStats("layer", tokens, 4, gram=gram, gram_half=half), wanda(weight, gram)
    fixed = [
        loss(weight, LeastSquares(shrinkage=s).update(weight, keep, stats), covariance)
        for s in (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    assert loss(weight, LeastSquares(shrinkage="auto").update(weight, keep, stats), covariance) < 1.08 * min(fixed)


def test_a_half_that_saw_nothing_supports_hardly_any_change():
    weight, gram, _, _ = problem(50)
    keep, nothing = wanda(weight, gram), torch.zeros_like(gram)
    assert shrinkage_of(weight, keep, gram, nothing) > 20
    assert shrinkage_of(weight, keep, gram, gram.clone()) > 20


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_scales_drop_out(scale):
    weight, gram, half, _ = problem(400)
    keep = wanda(weight, gram)
    expected = shrinkage_of(weight, keep, gram, half)
    assert shrinkage_of(weight * scale, keep, gram, half) == expected
    assert shrinkage_of(weight, keep, gram * scale, half * scale) == expected


def test_damping_chooses_itself_likewise_and_together_with_the_shrinkage():
    pairs = []
    for tokens in (60, 400, 100_000):
        weight, gram, half, _ = problem(tokens)
        keep = wanda(weight, gram)
        alone = choose_regularisation(weight, keep, gram, half, "auto", 0.0, "layer")
        both = choose_regularisation(weight, keep, gram, half, "auto", "auto", "layer")
        assert alone[1] == 0.0
        assert min(alone[0], both[0]) >= 0.1
        # What the shrinkage takes on is not asked of the damping again.
        assert both[0] <= alone[0]
        assert both[1] >= shrinkage_of(weight, keep, gram, half) / 2
        pairs.append(alone[0])
    assert pairs == sorted(pairs, reverse=True)
    assert pairs[0] > 0.1
    assert pairs[-1] == 0.1
    nothing = torch.zeros_like(gram)
    assert choose_regularisation(weight, keep, gram, nothing, "auto", 0.3, "layer") == (0.1 * 2**8, 0.3)


@pytest.mark.parametrize("tokens", [24, 60, 130, 1000])
def test_damping_alone_guards_an_update_as_well(tokens):
    weight, gram, half, covariance = problem(tokens, 2)
    stats, keep = LayerStats("layer", tokens, 4, gram=gram, gram_half=half), wanda(weight, gram)
    alone = loss(weight, weight * keep, covariance)
    assert loss(weight, LeastSquares(damping="auto").update(weight, keep, stats), covariance) <= 1.03 * alone
    solved = Admm(damping="auto", shrinkage="auto").solve(weight, stats, HALF)
    assert solved.chosen.keys() == {"damping", "shrinkage"}
    updated = LeastSquares(damping="auto", shrinkage="auto").update(weight, solved.keep, stats)
    assert loss(weight, updated, covariance) <= 1.01 * alone
