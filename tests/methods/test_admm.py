"""The preconditioned ADMM against its steps written out, and against ALPS on layers like those of trained models."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from zpruner.errors import InvalidPatternError, MissingStatisticError, SolverError
from zpruner.masks import pruned_count, select
from zpruner.methods.admm import Admm
from zpruner.methods.alps import Alps
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat
from zpruner.updates.least_squares import LeastSquares

PATTERNS = [SparsityPattern(ratio=0.5), SparsityPattern(ratio=0.7), SparsityPattern(kept=2, group_size=4)]


def problem(out=24, width=64, tokens=400, seed=0, dead=()):
    """Inputs with a few loud common directions and a falling spectrum."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, tokens, generator=generator)
    x += torch.randn(width, 3, generator=generator) @ torch.randn(3, tokens, generator=generator)
    x = torch.randn(width, width, generator=generator) @ x / width**0.5 + x
    x[list(dead)] = 0.0
    half = x[:, : tokens // 2]
    stats = LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T, gram_half=half @ half.T)
    return torch.randn(out, width, generator=generator), stats


def steps_written_out(weight, gram, pattern, damping, shrinkage, steps, rows=1.0):
    weight, gram = weight.double() * rows, gram.double()
    diagonal = gram.diagonal()
    hessian = gram + torch.diag(shrinkage * diagonal + damping * diagonal.mean())
    root = hessian.diagonal().sqrt()
    hessian, weight = hessian / torch.outer(root, root), weight * root
    least = shrinkage / (1 + shrinkage)
    values = torch.linalg.eigvalsh(hessian)
    typical = 0.8 * (float((values + 0.1).log().mean().exp()) - 0.1)
    bold = 1.37 * (typical + 3 * typical) / (least + 3 * typical)
    shift = max((typical - bold * least) / (bold - 1), 0.6 * typical) if bold > 1 else 0.6 * typical
    inverse = torch.linalg.inv(hessian + shift * torch.eye(len(gram)))
    project = lambda x: select(x.abs().float(), pattern, ComparisonGroup.LAYER)  # noqa: E731
    sparse, dual = weight * project(weight), torch.zeros_like(weight)
    for step in range(steps):
        rho = 0.6 * typical * 5.0 ** (step / (steps - 1))
        solved = weight + (rho * (sparse - weight) - dual) @ inverse * (typical + shift) / (typical + rho)
        solved = 1.7 * solved - 0.7 * sparse
        keep = project(solved + dual / rho)
        sparse = (solved + dual / rho) * keep
        dual = dual + rho * (solved - sparse)
    return keep


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("shrinkage", [0.0, 0.2, 2.0])
def test_equals_its_steps_written_out(pattern, shrinkage):
    weight, stats = problem()
    found = Admm(damping=0.02, shrinkage=shrinkage).solve(weight, stats, pattern)
    expected = steps_written_out(weight, stats.gram, pattern, 0.02, shrinkage, 12)
    assert int((found.keep != expected).sum()) <= 2
    assert torch.equal(found.weight != 0, found.keep)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_a_few_steps_are_no_worse_than_alps(pattern):
    ratios = []
    for seed in range(4):
        weight, stats = problem(out=64, width=96, tokens=1500, seed=seed)
        settings: dict[str, Any] = {"damping": 0.03, "shrinkage": 0.1}
        losses = []
        for solver in (Admm(**settings), Alps(**settings)):
            change = LeastSquares(**settings).update(weight, solver.solve(weight, stats, pattern).keep, stats) - weight
            losses.append(float((change @ stats.gram * change).sum()))
        ratios.append(losses[0] / losses[1])
    assert sum(ratios) / 4 < 1.0


@pytest.mark.parametrize("ratio", [0.0, 0.33, 0.99])
def test_counts_are_exact(ratio):
    weight, stats = problem(out=9, width=17)
    keep = Admm().solve(weight, stats, SparsityPattern(ratio=ratio)).keep
    assert int((~keep).sum()) == pruned_count(9 * 17, ratio)


def test_dead_inputs_go_first_and_scales_drop_out():
    weight, stats = problem(dead=(2, 3, 20))
    found = Admm(shrinkage=0.1).solve(weight, stats, PATTERNS[0])
    assert not found.keep[:, [2, 3, 20]].any()
    assert torch.equal(found.keep, Admm(shrinkage=0.1).solve(weight * 2.0**90, stats, PATTERNS[0]).keep)


def test_errors():
    weight, stats = problem()
    with pytest.raises(InvalidPatternError, match=r"blocks\.0\.up"):
        Admm().solve(weight, stats, SparsityPattern(kept=3, group_size=5))
    with pytest.raises(MissingStatisticError, match="gram_half"):
        Admm().solve(weight, LayerStats("up", 1, 1, gram=stats.gram), PATTERNS[0])
    singular = LayerStats("blocks.0.up", 1, 1, gram=torch.full((64, 64), -1.0) + 1.5 * torch.eye(64))
    with pytest.raises(SolverError, match=r"layer blocks\.0\.up"):
        Admm(shrinkage=0.0).solve(weight, singular, PATTERNS[0])


def with_gradients(stats, out, seed=0):
    """The same statistics, with gradients that differ a lot from row to row."""
    generator = torch.Generator().manual_seed(seed)
    loud = torch.logspace(-2, 2, out)[torch.randperm(out, generator=generator)].unsqueeze(1)
    grad_sq = torch.rand(out, stats.width, generator=generator) * loud
    return replace(stats, grad_sq=grad_sq)


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_rows_count_by_a_power_of_their_gradients_norm(power):
    weight, stats = problem()
    stats = with_gradients(stats, 24)
    found = Admm(damping=0.02, shrinkage=0.2, sensitivity=power).solve(weight, stats, PATTERNS[0])
    norms = stats.grad_sq.double().sum(1, keepdim=True).sqrt()
    expected = steps_written_out(weight, stats.gram, PATTERNS[0], 0.02, 0.2, 12, norms**power)
    assert int((found.keep != expected).sum()) <= 2
    assert torch.equal(found.weight != 0, found.keep)
    plain = Admm(damping=0.02, shrinkage=0.2).solve(weight, stats, PATTERNS[0])
    both = found.keep & plain.keep  # the weights are those of W, whatever rows count
    assert float((found.weight - plain.weight)[both].norm() / plain.weight[both].norm()) < 0.5
    kept = found.keep.sum(1)[norms[:, 0].argsort()]
    assert int(kept[-6:].sum()) > 2 * int(kept[:6].sum())


def test_rows_count_by_a_power_of_their_effect():
    weight, stats = problem()
    effect = torch.logspace(-2, 2, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(5))]
    stats = with_gradients(replace(stats, effect=effect), 24)
    settings: dict[str, Any] = {"damping": 0.02, "shrinkage": 0.2}
    found = Admm(**settings, effect=0.5).solve(weight, stats, PATTERNS[0])
    rows = effect.double().sqrt().unsqueeze(1) ** 0.5
    assert int((found.keep != steps_written_out(weight, stats.gram, PATTERNS[0], 0.02, 0.2, 12, rows)).sum()) <= 2
    both = Admm(**settings, effect=0.5, sensitivity=0.3).solve(weight, stats, PATTERNS[0])
    rows = rows * stats.grad_sq.double().sum(1, keepdim=True).sqrt() ** 0.3
    assert int((both.keep != steps_written_out(weight, stats.gram, PATTERNS[0], 0.02, 0.2, 12, rows)).sum()) <= 2
    assert Admm(effect=0.5).required() - Admm().required() == {Stat.EFFECT}
    with pytest.raises(MissingStatisticError, match="effect, which"):
        Admm(effect=0.5).solve(weight, replace(stats, effect=None), PATTERNS[0])


def test_the_effect_is_left_alone():
    weight, stats = problem()
    effect = torch.logspace(-2, 2, 24, dtype=torch.float64)
    Admm(effect=0.5).solve(weight, replace(stats, effect=effect), PATTERNS[0])
    assert torch.equal(effect, torch.logspace(-2, 2, 24, dtype=torch.float64))


def test_rows_whose_gradients_are_alike_count_alike():
    weight, stats = problem()
    alike = replace(stats, grad_sq=torch.rand(1, 64).expand(24, 64) * 1e-12)
    settings: dict[str, Any] = {"damping": 0.02, "shrinkage": 0.2}
    plain = Admm(**settings).solve(weight, stats, PATTERNS[0])
    for given in (alike, replace(stats, grad_sq=torch.zeros(24, 64))):  # as of an expert without a token
        found = Admm(**settings, sensitivity=0.5).solve(weight, given, PATTERNS[0])
        assert int((found.keep != plain.keep).sum()) <= 2
    mixed = with_gradients(stats, 24)
    mixed.grad_sq[3] = 0.0
    found = Admm(**settings, sensitivity=0.5).solve(weight, mixed, PATTERNS[2])  # N:M compares inside rows
    assert torch.equal(found.keep, Admm(**settings).solve(weight, stats, PATTERNS[2]).keep)


def test_gradients_are_read_where_they_count():
    weight, stats = problem()
    assert Stat.GRAD_SQ not in Admm().required()
    assert Stat.GRAD_SQ in Admm(sensitivity=0.5).required()
    with pytest.raises(MissingStatisticError, match="grad_sq"):
        Admm(sensitivity=0.5).solve(weight, stats, PATTERNS[0])
