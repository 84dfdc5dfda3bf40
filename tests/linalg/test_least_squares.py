"""Least squares on a mask: both solvers against a direct float64 solution of every row."""

import itertools

import pytest
import torch

from zpruner.errors import SolverError
from zpruner.linalg import Solver, choose_solver, damped_hessian, least_squares, masked_cg, masked_cholesky


def problem(out=9, width=30, tokens=90, seed=0, dead=(), damping=0.01):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) + 3 * torch.eye(width)
    x = mix @ torch.randn(width, tokens, generator=generator) * torch.linspace(0.2, 3.0, width)[:, None]
    x[list(dead)] = 0.0
    weight = torch.randn(out, width, generator=generator)
    # The rows keep different numbers of weights; the first all, the second none.
    keep = torch.rand(out, width, generator=generator) > torch.linspace(0.0, 1.0, out)[:, None]
    keep[0], keep[1] = True, False
    return weight, keep, damped_hessian(x @ x.T, damping, "blocks.1.up")


def direct(weight, keep, matrix):
    weight, matrix, result = weight.double(), matrix.double(), torch.zeros(weight.shape, dtype=torch.float64)
    for i, row in enumerate(keep):
        kept = row.nonzero().squeeze(1)
        result[i, kept] = torch.linalg.solve(matrix[kept][:, kept], (weight[i] @ matrix)[kept])
    return result


def loss(weight, other, matrix):
    change = weight.double() - other.double()
    return float((change @ matrix.double() * change).sum())


@pytest.mark.parametrize("solver", [Solver.CHOLESKY, Solver.CG])
@pytest.mark.parametrize("dead", [(), (0, 7)])
@pytest.mark.parametrize("tokens", [90, 12])
def test_equals_the_direct_solution(solver, dead, tokens):
    weight, keep, hessian = problem(dead=dead, tokens=tokens)
    got = least_squares(weight, keep, hessian, solver=solver, tolerance=1e-9, max_steps=300)
    expected = direct(weight.masked_fill(hessian.dead, 0.0), keep & ~hessian.dead, hessian.matrix)
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-3)
    assert not got[~keep].any()
    assert not got[:, hessian.dead].any()


@pytest.mark.parametrize("solver", [Solver.CHOLESKY, Solver.CG])
def test_all_kept_is_the_dense_weight(solver):
    weight, _, hessian = problem()
    assert torch.equal(least_squares(weight, torch.ones_like(weight) > 0, hessian, solver=solver), weight)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1e25])
@pytest.mark.parametrize("solver", [Solver.CHOLESKY, Solver.CG])
def test_follows_the_weights_scale(solver, scale):
    weight, keep, hessian = problem()
    expected = least_squares(weight, keep, hessian, solver=solver)
    got = least_squares(weight * scale, keep, hessian, solver=solver)
    torch.testing.assert_close(got / scale, expected, rtol=1e-3, atol=1e-3)


def low_rank(out=60, width=96, rank=12, tokens=900, noise=0.1, damping=0.01):
    """Return inputs that are mostly `rank` signals, channels of unequal loudness, and half of the weights kept."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(width, rank, generator=generator) @ torch.randn(rank, tokens, generator=generator)
    x = (x + noise * torch.randn(width, tokens, generator=generator)) * torch.logspace(-1, 1, width)[:, None]
    weight = torch.randn(out, width, generator=generator)
    keep = torch.rand(out, width, generator=generator) > 0.5
    return weight, keep, damped_hessian(x @ x.T, damping, "blocks.1.up")


@pytest.mark.parametrize("damping", [0.01, 1e-3])
@pytest.mark.parametrize(
    "make", [lambda damping: problem(300, 80, 200, damping=damping), lambda d: low_rank(damping=d)]
)
def test_default_tolerance_is_within_two_percent_of_the_least_loss(make, damping):
    weight, keep, hessian = make(damping)
    least = loss(weight, direct(weight, keep, hessian.matrix), hessian.matrix)
    got = loss(weight, least_squares(weight, keep, hessian, solver=Solver.CG), hessian.matrix)
    assert least * (1 - 1e-5) <= got <= 1.02 * least


def test_every_step_of_cg_lowers_the_loss():
    weight, keep, hessian = problem(width=50)
    removed = weight * ~keep
    losses = []
    for steps in range(12):
        found = masked_cg(hessian.matrix, keep, removed @ hessian.matrix, tolerance=1e-9, max_steps=steps)
        losses.append(loss(removed, found.values, hessian.matrix))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(loss(weight, weight * keep, hessian.matrix))


@pytest.mark.parametrize("tolerance", [0.3, 0.03, 1e-3])
def test_cg_stops_after_the_first_step_that_gains_too_little(tolerance):
    weight, keep, hessian = low_rank()
    removed = weight * ~keep
    target = removed @ hessian.matrix
    start = (removed * target).sum(dim=1)

    def after(steps, **settings):
        return masked_cg(hessian.matrix, keep, target, start, max_steps=steps, **settings)

    found = after(100, tolerance=tolerance)
    assert found.settled
    losses = [loss(removed, after(n, tolerance=1e-9).values, hessian.matrix) for n in range(found.steps + 1)]
    gains = [(before - now) / now for before, now in itertools.pairwise(losses)]
    assert gains[-1] <= tolerance * 1.01
    assert all(gain > tolerance * 0.99 for gain in gains[:-1])


def test_steps_that_do_not_suffice_are_an_error():
    weight, keep, hessian = low_rank()
    assert not masked_cg(hessian.matrix, keep, weight @ hessian.matrix, tolerance=1e-6, max_steps=2).settled
    with pytest.raises(SolverError, match=r"least squares of layer blocks\.1\.up.*after 2 steps.*[Rr]aise damping"):
        least_squares(weight, keep, hessian, solver=Solver.CG, max_steps=2)


def test_a_singular_system_has_a_minimum_that_cg_finds():
    weight, keep, hessian = problem(tokens=12, damping=0.0)
    got = least_squares(weight, keep, hessian, solver=Solver.CG, tolerance=1e-6)
    removed = (weight * ~keep).double()
    matrix = hessian.matrix.double()
    least = 0.0
    for row, kept in zip(removed, keep, strict=True):
        right = (row @ matrix)[kept]
        change = torch.linalg.pinv(matrix[kept][:, kept], hermitian=True, rtol=1e-6) @ right
        least += float(row @ matrix @ row - right @ change)
    start = loss(weight, weight * keep, hessian.matrix)
    assert loss(weight, got, hessian.matrix) - least < 1e-3 * start


@pytest.mark.parametrize("elements", [1, 500, 1 << 20])
def test_cholesky_batches_do_not_change_the_result(elements):
    weight, keep, hessian = problem()
    target = weight @ hessian.matrix
    whole = masked_cholesky(hessian.matrix, keep, target, hessian)
    part = masked_cholesky(hessian.matrix, keep, target, hessian, elements=elements)
    torch.testing.assert_close(part, whole)


def test_singular_system_names_the_layer():
    weight, keep, hessian = problem(tokens=3, damping=0.0)
    with pytest.raises(SolverError, match=r"layer blocks\.1\.up.*Set damping to 0\.01"):
        least_squares(weight, keep, hessian, solver=Solver.CHOLESKY)


def test_the_solver_goes_by_cost():
    dense = torch.ones(4, 1000, dtype=torch.bool)
    assert choose_solver(dense, 50) is Solver.CG
    few = torch.zeros(4, 1000, dtype=torch.bool)
    few[:, :50] = True
    assert choose_solver(few, 50) is Solver.CHOLESKY


@pytest.mark.parametrize("tokens", [90, 12])
@pytest.mark.parametrize("gone", [(), (3, 4, 20), tuple(range(30))])
def test_whole_inputs_that_go_are_one_system_for_all_rows(gone, tokens):
    weight, keep, hessian = problem(dead=(0,), tokens=tokens)
    keep[:] = True
    keep[:, list(gone)] = False
    keep[4] = False  # an output that goes
    got = least_squares(weight, keep, hessian)
    expected = direct(weight.masked_fill(hessian.dead, 0.0), keep & ~hessian.dead, hessian.matrix)
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-3)
    assert not got[~keep].any()


def test_what_is_added_to_the_diagonal_row_by_row():
    weight, keep, hessian = problem()
    added = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2))
    target = weight @ hessian.matrix
    found = masked_cg(hessian.matrix, keep, target, added=added, tolerance=1e-6, max_steps=300).values
    for i in range(len(weight)):
        matrix = hessian.matrix + torch.diag(added[i])
        alone = masked_cg(matrix, keep[i : i + 1], target[i : i + 1], tolerance=1e-6, max_steps=300).values
        torch.testing.assert_close(found[i : i + 1], alone, rtol=1e-3, atol=1e-4)
