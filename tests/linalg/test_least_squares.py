"""Least squares on a mask: both solvers against a direct float64 solution of every row."""

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
    got = least_squares(weight, keep, hessian, solver=solver, tolerance=1e-6, max_steps=300)
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


def test_default_tolerance_is_within_a_percent_of_the_least_loss():
    weight, keep, hessian = problem(out=300, width=80, tokens=200)
    least = loss(weight, direct(weight, keep, hessian.matrix), hessian.matrix)
    got = loss(weight, least_squares(weight, keep, hessian, solver=Solver.CG), hessian.matrix)
    assert least <= got * (1 + 1e-6) <= 1.01 * least


def test_every_step_of_cg_lowers_the_loss():
    weight, keep, hessian = problem(width=50)
    losses = [
        loss(
            weight, least_squares(weight, keep, hessian, solver=Solver.CG, tolerance=1e-9, max_steps=n), hessian.matrix
        )
        for n in range(0, 12)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == pytest.approx(loss(weight, weight * keep, hessian.matrix))


def test_cg_starts_from_a_guess():
    weight, keep, hessian = problem()
    target = weight @ hessian.matrix
    exact = masked_cholesky(hessian.matrix, keep, target, hessian)
    cold = masked_cg(hessian.matrix, keep, target, None, tolerance=1e-3, max_steps=100)
    warm = masked_cg(hessian.matrix, keep, target, exact + 7 * ~keep, tolerance=1e-3, max_steps=100)
    assert warm.steps == 0 < cold.steps < 100
    assert cold.residual <= 1e-3
    torch.testing.assert_close(warm.values, exact)


def test_cg_reports_the_residual_where_steps_run_out():
    weight, keep, hessian = problem()
    found = masked_cg(hessian.matrix, keep, weight @ hessian.matrix, None, tolerance=1e-6, max_steps=2)
    assert found.steps == 2
    assert found.residual > 1e-6


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
