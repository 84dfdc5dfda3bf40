"""ALPS against its ADMM written with a direct solve, and against all masks of a tiny problem."""

from itertools import combinations

import pytest
import torch

from zpruner.errors import SolverError
from zpruner.masks import pruned_count, select
from zpruner.methods.alps import Alps
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern
from zpruner.updates.least_squares import LeastSquares

PATTERNS = [SparsityPattern(ratio=0.5), SparsityPattern(ratio=0.7), SparsityPattern(kept=2, group_size=4)]


def problem(out=8, width=16, tokens=60, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, tokens, generator=generator)
    x = x * torch.linspace(0.3, 2.0, width)[:, None]
    x[list(dead)] = 0.0
    return torch.randn(out, width, generator=generator), LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T)


def layer_error(weight, keep, stats):
    weights = LeastSquares(solver="cholesky").update(weight, keep, stats)
    change = (weight - weights).double()
    return float((change @ stats.gram.double() * change).sum())


def admm(weight, gram, pattern, rho=0.1, growth=1.1):
    weight, hessian = weight.double(), gram.double()
    hessian = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(gram))
    root = hessian.diagonal().sqrt()
    hessian, weight = hessian / root / root[:, None], weight * root
    keep = select(weight.abs().float(), pattern, ComparisonGroup.LAYER)
    sparse, dual = weight * keep, torch.zeros_like(weight)
    while True:
        right = weight @ hessian - dual + rho * sparse
        solved = torch.linalg.solve(hessian + rho * torch.eye(len(gram)), right, left=False)
        previous = keep
        keep = select((solved + dual / rho).abs().float(), pattern, ComparisonGroup.LAYER)
        sparse = (solved + dual / rho) * keep
        if torch.equal(keep, previous) and (solved - sparse).norm() <= 0.01 * weight.norm():
            return keep
        dual = dual + rho * (solved - sparse)
        rho *= growth


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_equals_admm_with_a_direct_solve(pattern):
    weight, stats = problem()
    assert torch.equal(Alps().solve(weight, stats, pattern).keep > 0, admm(weight, stats.gram, pattern))


@pytest.mark.parametrize("seed", range(3))
def test_rounding_does_not_change_the_mask(seed):
    """Loud common directions: float32 throughout, solving for V itself, put 44 to 70 weights elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 1000, generator=generator)
    x += torch.randn(256, 4, generator=generator) @ torch.randn(4, 1000, generator=generator)
    weight, stats = torch.randn(128, 256, generator=generator), LayerStats("blocks.0.up", 1000, 4, gram=x @ x.T)
    moved = (Alps().solve(weight, stats, PATTERNS[0]).keep > 0) != admm(weight, stats.gram, PATTERNS[0])
    assert int(moved.sum()) <= 4


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_beats_sparsegpt(pattern):
    weight, stats = problem(out=30, width=64, tokens=200)
    errors = [
        layer_error(weight, method.solve(weight, stats, pattern).keep > 0, stats) for method in (Alps(), SparseGPT())
    ]
    assert errors[0] < 0.97 * errors[1]


def test_is_near_the_best_of_all_masks():
    ratios = []
    for seed in range(6):
        weight, stats = problem(out=1, width=10, seed=seed)
        masks = []
        for pruned in combinations(range(10), 5):
            keep = torch.ones(1, 10, dtype=torch.bool)
            keep[0, list(pruned)] = False
            masks.append(keep)
        best = min(layer_error(weight, keep, stats) for keep in masks)
        found = Alps().solve(weight, stats, SparsityPattern(ratio=0.5)).keep > 0
        ratios.append(layer_error(weight, found, stats) / best)
    assert sorted(ratios)[3] < 1.2
    assert min(ratios) > 1 - 1e-3


@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.5, 0.99])
def test_counts_are_exact(ratio):
    weight, stats = problem()
    assert int((Alps().solve(weight, stats, SparsityPattern(ratio=ratio)).keep == 0).sum()) == pruned_count(128, ratio)


def test_dead_inputs_few_tokens_and_scale():
    weight, stats = problem(tokens=6, dead=(1, 2))
    pattern = SparsityPattern(kept=2, group_size=4)
    expected = Alps().solve(weight, stats, pattern).keep
    assert not expected[:, [1, 2]].any()
    assert torch.equal(Alps().solve(weight * 2.0**90, stats, pattern).keep, expected)
    # Without damping the singular Gram matrix is a valid problem: the ridge solve needs no inverse of it.
    assert int(Alps(damping=0.0).solve(weight, stats, pattern).keep.sum()) == 64


def test_shrinkage_is_read():
    weight, stats = problem()
    pattern = SparsityPattern(ratio=0.5)
    plain, shrunk = Alps().solve(weight, stats, pattern).keep, Alps(shrinkage=1.0).solve(weight, stats, pattern).keep
    assert not torch.equal(plain, shrunk)


def test_too_few_steps_name_the_layer():
    weight, stats = problem()
    with pytest.raises(SolverError, match=r"layer blocks\.0\.up.*after 1 steps.*max_steps"):
        Alps(max_steps=1).solve(weight, stats, SparsityPattern(ratio=0.5))
