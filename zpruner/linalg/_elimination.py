"""Whole inputs of a layer removed group by group, the rest made up for as they go (optimal brain surgeon)."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.linalg._hessian import DampedHessian, inverse_factor
from zpruner.runtime.products import matmul


class Elimination:
    """A layer's weight and inverse Hessian while groups of its inputs are removed.

    Removing the inputs g of `||(W - W') X||^2` costs `tr(W_g ([H^-1]_gg)^-1 W_g^T)` after every other input has made up
    for it (Hassibi and Stork 1993; for whole groups Kurtic et al., arXiv 2302.04089).

    Args:
        weight: float32 (out, in), dense.
        hessian: of the layer's input; its matrix is taken.
    """

    def __init__(self, weight: Tensor, hessian: DampedHessian) -> None:
        self._weight = weight.masked_fill(hessian.dead, 0.0)
        factor = inverse_factor(hessian)
        self._inverse = matmul(factor.T, factor)
        self._place = torch.arange(weight.shape[1], device=weight.device)
        """Input -> its row in what is left."""

    def costs(self, index: Tensor) -> Tensor:
        """Return what removing each group of inputs would cost: float64 (groups,).

        Args:
            index: int64 (groups, width), inputs that are left.
        """
        places = self._place[index]
        blocks = self._inverse[places.unsqueeze(2), places.unsqueeze(1)]
        columns = self._weight.T[places]  # (groups, width, out)
        if index.shape[1] == 1:
            return columns.double().square().sum((1, 2)) / blocks.double().reshape(-1)
        solved = torch.linalg.solve_triangular(torch.linalg.cholesky(blocks), columns, upper=False)
        return solved.double().square().sum((1, 2))

    def remove(self, inputs: Tensor) -> None:
        """Remove inputs, int64 (n,), and let what is left make up for them."""
        gone = self._place[inputs]
        stay = torch.ones(len(self._inverse), dtype=torch.bool, device=gone.device)
        stay[gone] = False
        rows = self._inverse[gone]
        change = torch.linalg.solve(rows[:, gone], rows[:, stay])
        self._weight = self._weight[:, stay].sub_(matmul(self._weight[:, gone], change))
        self._inverse = self._inverse[stay][:, stay].sub_(matmul(self._inverse[stay][:, gone], change))
        left = torch.nonzero(self._place >= 0).squeeze(1)[stay]
        self._place = torch.full_like(self._place, -1)
        self._place[left] = torch.arange(len(left), device=left.device)
