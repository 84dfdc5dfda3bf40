"""Conjugate gradients on the kept weights of all rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 256
"""Rows iterated together: large enough for a full-speed matrix product, small enough to stay in a core's cache."""


@dataclass(frozen=True)
class Solution:
    """What `masked_cg` found.

    Attributes:
        values: float32 (rows, n), zero outside the support.
        steps: the largest number of steps that any batch of rows took.
        residual: the largest relative residual left in any batch of rows.
    """

    values: Tensor
    steps: int
    residual: float


def masked_cg(
    matrix: Tensor, support: Tensor, target: Tensor, start: Tensor | None, *, tolerance: float, max_steps: int
) -> Solution:
    """Solve `A_KK x_K = b_K` for every row, each with its own support K and one symmetric A for all.

    Preconditioned by the diagonal of A. Each step is one product of a dense (rows, n) with A, whatever the
    supports. The error in the A-norm falls with every step, so that stopping early is safe.

    Args:
        matrix: A, positive definite, float32 (n, n).
        support: bool (rows, n), True = in K.
        target: b, float32 (rows, n); read on the support only.
        start: first guess, float32 (rows, n), read on the support only; zero if None.
        tolerance: the iteration ends when the residual of the rows iterated together (up to 256), each entry
            divided by `sqrt(A_jj)`, has at most this share of the norm of b, likewise scaled.
        max_steps: steps at most.
    """
    root = matrix.diagonal().sqrt()
    # Scaled to a unit diagonal, the preconditioned iteration is the plain one.
    scaled = matrix / root / root.unsqueeze(1)
    values, steps, worst = torch.empty_like(target), 0, 0.0
    for low in range(0, len(target), _ROWS):
        rows = slice(low, low + _ROWS)
        mask = support[rows].to(target.dtype)
        guess = torch.zeros_like(mask) if start is None else start[rows] * mask * root
        x, taken, residual = _iterate(scaled, mask, target[rows] * mask / root, guess, tolerance, max_steps)
        torch.div(x, root, out=values[rows])
        steps, worst = max(steps, taken), max(worst, residual)
    return Solution(values, steps, worst)


def _iterate(
    matrix: Tensor, mask: Tensor, target: Tensor, x: Tensor, tolerance: float, max_steps: int
) -> tuple[Tensor, int, float]:
    """Return the solution, the steps taken and the relative residual; all inputs vanish off the mask."""
    goal = float(torch.linalg.vector_norm(target))
    tiny = torch.finfo(target.dtype).tiny
    residual = target.addmm(x, matrix, alpha=-1).mul_(mask)
    direction = residual.clone()
    square = torch.linalg.vecdot(residual, residual)
    product = torch.empty_like(residual)
    taken = 0
    while taken < max_steps and float(square.sum().sqrt()) > tolerance * goal:
        torch.mm(direction, matrix, out=product).mul_(mask)
        # A row that is solved exactly has direction zero: its step is 0 / tiny.
        length = (square / torch.linalg.vecdot(direction, product).clamp_min_(tiny)).unsqueeze(1)
        x.addcmul_(length, direction)
        residual.addcmul_(length, product, value=-1)
        previous, square = square, torch.linalg.vecdot(residual, residual)
        direction.mul_((square / previous.clamp_min(tiny)).unsqueeze(1)).add_(residual)
        taken += 1
    return x, taken, float(square.sum().sqrt()) / max(goal, tiny)
