"""Batched direct solution on the kept weights, one small system per row."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.linalg._hessian import DampedHessian, checked_cholesky

_ELEMENTS = 1 << 24
"""Matrix elements held at once (64 MiB in float32), or one system where it is larger."""


def masked_cholesky(
    matrix: Tensor, support: Tensor, target: Tensor, hessian: DampedHessian, *, elements: int = _ELEMENTS
) -> Tensor:
    """Solve `A_KK x_K = b_K` for every row, each with its own support K and one symmetric A for all.

    The rows are sorted by the size of K and solved in batches of (count, k, k), k the largest of the batch; a
    smaller system is bordered with the identity.

    Args:
        matrix: A, positive definite, float32 (n, n).
        support: bool (rows, n), True = in K.
        target: b, float32 (rows, n); read on the support only.
        hessian: names the layer and the damping where a factorisation fails.
        elements: matrix elements held at once, which bounds memory.

    Returns:
        float32 (rows, n), zero outside the support.

    Raises:
        SolverError: some A_KK is not positive definite.
    """
    values = torch.zeros_like(target)
    sizes, order = support.sum(dim=1).sort(descending=True)
    low = 0
    while low < len(order) and (size := int(sizes[low])):
        rows = order[low : low + max(1, elements // size**2)]
        low += len(rows)
        kept = support[rows]
        # A stable sort puts the indices of K first, in order.
        indices = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
        inside = kept.gather(1, indices)
        systems = matrix[indices.unsqueeze(2), indices.unsqueeze(1)]
        if int(sizes[low - 1]) < size:
            systems.masked_fill_(~(inside.unsqueeze(2) & inside.unsqueeze(1)), 0.0)
            systems.diagonal(dim1=1, dim2=2).masked_fill_(~inside, 1.0)
        right = (target[rows].gather(1, indices) * inside).unsqueeze(2)
        solved = torch.cholesky_solve(right, checked_cholesky(systems, hessian)).squeeze(2)
        values[rows] = torch.zeros_like(target[rows]).scatter_(1, indices, solved.mul_(inside))
    return values
