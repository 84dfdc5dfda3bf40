"""Conjugate gradients on the kept weights of all rows at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.runtime.products import matmul

_ROWS = 256
"""Rows iterated together: large enough for a full-speed matrix product, small enough to stay in a core's cache."""


@dataclass(frozen=True)
class Solution:
    """What `masked_cg` found.

    Attributes:
        values: float32 (rows, n), zero outside the support.
        steps: the largest number of steps that any batch of rows took.
        settled: whether every batch of rows met the tolerance.
    """

    values: Tensor
    steps: int
    settled: bool


def masked_cg(
    matrix: Tensor,
    support: Tensor,
    target: Tensor,
    loss: Tensor | None = None,
    *,
    tolerance: float,
    max_steps: int,
    added: Tensor | None = None,
) -> Solution:
    """Solve `A_KK x_K = b_K` for every row, each with its own support K and one symmetric A for all.

    Preconditioned by the diagonal of A, starting from zero. Each step is one product of a dense (rows, n) with A,
    whatever the supports. `x A x^T - 2 b x^T` falls with every step.

    Args:
        matrix: A, positive semidefinite with a positive diagonal, float32 (n, n).
        support: bool (rows, n), True = in K.
        target: b, float32 (rows, n); read on the support only.
        loss: c where `x A x^T - 2 b x^T + c` is what counts and cannot be negative, float32 (rows,).
        tolerance: rows are iterated together, up to 256. With `loss`, until a step lowers their sum of losses by at
            most this share of it. Without, until the residual, each entry divided by `sqrt(A_jj)`, has at most this
            share of the norm of b, likewise scaled: inputs that are nearly the same can leave much of the loss then.
        max_steps: steps at most.
        added: to the diagonal of A, row by row, float32 (rows, n); None: nothing.
    """
    values, steps, settled = torch.empty_like(target), 0, True
    for low in range(0, len(target), _ROWS):
        rows = slice(low, low + _ROWS)
        mask = support[rows].to(target.dtype)
        whole = None if loss is None else float(loss[rows].double().sum())
        more = None if added is None else added[rows]
        x, taken, done = _iterate(matrix, more, mask, target[rows] * mask, whole, tolerance, max_steps)
        values[rows] = x
        steps, settled = max(steps, taken), settled and done
    return Solution(values, steps, settled)


def _iterate(
    matrix: Tensor,
    added: Tensor | None,
    mask: Tensor,
    target: Tensor,
    loss: float | None,
    tolerance: float,
    max_steps: int,
) -> tuple[Tensor, int, bool]:
    """Return the solution, the steps taken and whether they sufficed; `target` vanishes off the mask."""
    tiny = torch.finfo(target.dtype).tiny
    diagonal = matrix.diagonal() if added is None else matrix.diagonal() + added
    x, residual = torch.zeros_like(target), target
    direction = residual / diagonal
    square = torch.linalg.vecdot(residual, direction)
    goal = tolerance * float(square.sum().sqrt())
    left = 0.0 if loss is None else loss
    for taken in range(max_steps):
        norm = float(square.sum().sqrt())
        if norm == 0.0 or (loss is None and norm <= goal):
            return x, taken, True
        moved = matmul(direction, matrix)
        if added is not None:
            moved.addcmul_(direction, added)
        moved.mul_(mask)
        # A row that is solved exactly has direction zero: its step is 0 / tiny.
        length = square / torch.linalg.vecdot(direction, moved).clamp_min_(tiny)
        x.addcmul_(length.unsqueeze(1), direction)
        if loss is not None:
            gain = float((length * square).sum(dtype=torch.float64))
            left -= gain
            # Below a millionth of the first loss the difference is rounding.
            if gain <= tolerance * max(left, 1e-6 * loss):
                return x, taken + 1, True
        residual.addcmul_(length.unsqueeze(1), moved, value=-1)
        scaled = torch.div(residual, diagonal, out=moved)
        previous, square = square, torch.linalg.vecdot(residual, scaled)
        direction.mul_((square / previous.clamp_min(tiny)).unsqueeze(1)).add_(scaled)
    norm = float(square.sum().sqrt())
    return x, max_steps, norm == 0.0 or (loss is None and norm <= goal)
