"""The exact joint compensation: least squares on the kept weights of every row."""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

from zpruner.errors import SolverError
from zpruner.linalg._conjugate_gradients import masked_cg
from zpruner.linalg._hessian import DampedHessian, checked_cholesky
from zpruner.linalg._masked_cholesky import masked_cholesky
from zpruner.runtime.products import matmul


class Solver(StrEnum):
    """How the systems `H_KK` are solved."""

    AUTO = "auto"
    """The one that costs less for the layer's shape and sparsity."""
    CHOLESKY = "cholesky"
    """Directly, one factorisation per row."""
    CG = "cg"
    """By conjugate gradients, all rows together."""


def least_squares(
    weight: Tensor,
    keep: Tensor,
    hessian: DampedHessian,
    *,
    solver: Solver = Solver.AUTO,
    tolerance: float = 1e-3,
    max_steps: int = 200,
) -> Tensor:
    """Return the weights on the mask that minimise `(w - w') H (w - w')^T` in every row.

    The joint compensation of all pruned weights at once (arXiv 2410.15567), `w'_K = (w H)_K (H_KK)^-1`.

    Args:
        weight: float32 (out, in), dense.
        keep: bool (out, in), True = kept.
        hessian: of the layer's input.
        solver: how; `auto` compares costs.
        tolerance: for conjugate gradients: the share of the loss by which their last step still lowers it.
        max_steps: for conjugate gradients.

    Returns:
        float32 (out, in), exactly zero where `keep` is False and at dead inputs.

    Raises:
        SolverError: a factorisation failed, or conjugate gradients still gained more after `max_steps`; names the
            layer and the setting to change. A singular H_KK, which has many minima, fails the factorisation only.
    """
    support = keep & ~hessian.dead
    weight = weight.masked_fill(hessian.dead, 0.0)
    # Solving for the change keeps the digits that w' would lose where it is nearly w; scaled, its squares neither
    # overflow nor vanish.
    scale = weight.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    removed = weight.masked_fill(support, 0.0) / scale
    target = matmul(removed, hessian.matrix)
    if (shared := shared_support(support)) is not None:
        return (weight + _solve_shared(hessian, shared, target) * scale).mul_(support)
    if solver is Solver.AUTO:
        solver = choose_solver(support, max_steps)
    if solver is Solver.CHOLESKY:
        change = masked_cholesky(hessian.matrix, support, target, hessian)
    else:
        loss = torch.linalg.vecdot(removed, target)
        found = masked_cg(hessian.matrix, support, target, loss, tolerance=tolerance, max_steps=max_steps)
        if not found.settled:
            raise SolverError(
                f"least squares of layer {hessian.layer}",
                f"a loss that still fell after {max_steps} steps of conjugate gradients",
                f"a last step of at most {tolerance:g} of it",
                f"Raise damping (now {hessian.damping:g}), steps or tolerance, or set solver: cholesky.",
            )
        change = found.values
    return (weight + change * scale).mul_(support)


def shared_support(support: Tensor) -> Tensor | None:
    """Return the support that all rows of bool (rows, n) have, or are empty, as where whole inputs went; else None."""
    rows = support.any(1)
    first = support[int(rows.int().argmax())] if len(support) else support.any(0)
    return first if bool((support == rows.unsqueeze(1) & first).all()) else None


def _solve_shared(hessian: DampedHessian, support: Tensor, target: Tensor) -> Tensor:
    """Return the change of every row, float32 (rows, n): one factorisation for all of them."""
    change = torch.zeros_like(target)
    places = torch.nonzero(support).squeeze(1)
    factor = checked_cholesky(hessian.matrix[places][:, places], hessian)
    change[:, places] = torch.cholesky_solve(target[:, places].T, factor).T
    return change


def choose_solver(support: Tensor, max_steps: int) -> Solver:
    """Return the cheaper solver for these supports, bool (rows, n).

    In operations of a large matrix product, as measured on one core: conjugate gradients take about 20 steps of
    `2 n^2` a row; a factorisation runs at a third of that speed, and gathering its matrix costs 500 per element.
    """
    sizes = support.sum(dim=1).double()
    direct = (sizes**3).sum() + 500 * (sizes**2).sum()
    iterative = min(20, max_steps) * 2.0 * support.shape[1] ** 2 * len(support)
    return Solver.CHOLESKY if float(direct) < iterative else Solver.CG
