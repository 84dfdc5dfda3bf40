"""The damped Hessian of the layer-wise reconstruction error, and the Cholesky factor of its inverse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, NonFiniteError, ShapeMismatchError, SolverError
from zpruner.runtime.products import matmul
from zpruner.types import all_finite, at_a_time

_SMALLEST_PIVOT = 4 * torch.finfo(torch.float32).eps
"""A pivot below this share of its diagonal entry is rounding error, not information."""
_FACTORED = 768
"""Inputs up to which an inverse is taken from a factorisation."""
_IN_CACHE = 1 << 18
"""Numbers reversed at a time."""


@dataclass(frozen=True)
class DampedHessian:
    """`H = G / mean(diag G) + damping * I + shrinkage * diag(G) / mean(diag G)` of one layer's input.

    The division makes every later step free of the Gram matrix's scale, which grows with the number of tokens; no
    mask and no weight depends on it.

    Attributes:
        matrix: float32 (in, in), symmetric; row and column of a dead input are those of the identity. Empty once
            it was taken.
        dead: bool (in,), inputs that were zero in every token; their weights count as zero.
        damping: the share of the mean diagonal that was added.
        layer: the layer's name, for messages.
        shrinkage: the share of each diagonal entry that was added to it.
    """

    matrix: Tensor
    dead: Tensor
    damping: float
    layer: str
    shrinkage: float = 0.0

    def take(self) -> Tensor:
        """Return the matrix, contiguous, and leave none here: for who puts something else in its memory."""
        taken = self.matrix.detach()
        self.matrix.set_()  # type: ignore[call-overload]
        return taken.contiguous()


def damped_hessian(gram: Tensor, damping: float, layer: str, *, shrinkage: float = 0.0) -> DampedHessian:
    """Return the Hessian of `||(W - W') X||^2`, up to a positive factor, made positive definite.

    Args:
        gram: `X X^T` summed over tokens, float32 (in, in).
        damping: share of the mean of the diagonal added to it; 0.01 in SparseGPT (arXiv 2301.00774).
        layer: the layer's name, for messages.
        shrinkage: share of each diagonal entry added to itself, the same pull towards uncorrelated inputs for
            loud and quiet ones; it keeps the updates from fitting the calibration text alone.

    Raises:
        InvalidSettingError: damping or shrinkage is negative or not finite.
        NonFiniteError: NaN or infinity in `gram`.
        ShapeMismatchError: `gram` is not a square float32 matrix.
    """
    for name, value in (("damping", damping), ("shrinkage", shrinkage)):
        if not 0.0 <= value < float("inf"):
            raise InvalidSettingError(name, repr(value), "a finite number that is not negative", "Set it to 0.01, say.")
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or gram.dtype != torch.float32:
        raise ShapeMismatchError(
            f"Gram matrix of layer {layer}",
            f"{gram.dtype} of shape {tuple(gram.shape)}",
            "float32 of shape (in, in)",
            "Run the calibrate stage again.",
        )
    mean = gram.diagonal().double().mean()
    if not all_finite(gram):
        raise NonFiniteError(
            f"Gram matrix of layer {layer}", "NaN or infinity", "finite sums", "Run the calibrate stage again."
        )
    # In float64 the quotient survives a mean that float32 holds only as a denormal number.
    scale = 1.0 / mean if mean > 0 else torch.ones_like(mean)
    matrix = gram * scale if 1e-30 < scale < 1e30 else (gram.double() * scale).float()
    diagonal = matrix.diagonal()
    dead = diagonal == 0
    diagonal.mul_(1 + shrinkage).add_(damping)
    diagonal.masked_fill_(dead, 1.0)
    return DampedHessian(matrix, dead, damping, layer, shrinkage)


def checked_cholesky(matrix: Tensor, hessian: DampedHessian, *, in_place: bool = False) -> Tensor:
    """Return the lower Cholesky factors of one or a batch of matrices: (..., n, n) -> (..., n, n).

    float32 throughout: on the Gram matrices of a 135M-parameter model the weights it gives have the layer error
    of float64 to seven digits, in half the time.

    Args:
        matrix: float32 (..., n, n), symmetric.
        hessian: names the layer and the damping where a factorisation fails.
        in_place: put the factor where the matrix was. One whose columns lie one after another needs no second memory.

    Raises:
        SolverError: some matrix is not positive definite to working precision; names the layer and the damping
            to try. Nothing falls back to another matrix.
    """
    least = _SMALLEST_PIVOT * matrix.diagonal(dim1=-2, dim2=-1)
    info = torch.empty(matrix.shape[:-2], dtype=torch.int32, device=matrix.device)
    factor = matrix if in_place else torch.empty_like(matrix).mT
    torch.linalg.cholesky_ex(matrix, out=(factor, info))
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    if bool((info != 0).any()) or bool((pivots < least).any()):
        raise SolverError(
            f"Cholesky factorisation of layer {hessian.layer}",
            f"a matrix that is singular with damping {hessian.damping:g}",
            "a positive definite one",
            f"Set damping to {max(10 * hessian.damping, 0.01):g}, or calibrate with more tokens than the layer "
            "has inputs.",
        )
    return factor


def inverse(matrix: Tensor, hessian: DampedHessian) -> Tensor:
    """Return the inverse of a symmetric positive definite matrix, float32 (n, n).

    By halves: with `S = D - C A^-1 C^T` it is made of `A^-1`, `S^-1` and three products, which run at a multiple of the
    speed of a factorisation.

    Args:
        matrix: float32 (n, n); its memory is written over.
        hessian: names the layer and the damping where the matrix is not positive definite.

    Raises:
        SolverError: as `checked_cholesky`.
    """
    width = len(matrix)
    if width <= _FACTORED:
        return torch.cholesky_inverse(checked_cholesky(matrix, hessian))
    half = width // 2
    cross = matrix[half:, :half].contiguous()
    first = inverse(matrix[:half, :half].contiguous(), hessian)
    turned = matmul(cross, first)
    second = inverse(matrix[half:, half:].sub(matmul(turned, cross.mT)), hessian)
    corner = matmul(second, turned)
    matrix[:half, :half] = first.add_(matmul(turned.mT, corner))
    matrix[half:, half:] = second
    matrix[half:, :half] = corner.neg_()
    matrix[:half, half:] = corner.mT
    return matrix


def inverse_factor(hessian: DampedHessian) -> Tensor:
    """Return the upper triangular `U` with `H^-1 = U^T U`: float32 (in, in).

    With rows and columns in reverse order `H = R R^T`, R upper triangular, so that `U = R^-1`: one factorisation
    and one triangular inverse, in place of two factorisations and a full inverse. Takes the Hessian's matrix and puts
    U in its memory; one more matrix of that size is needed on the way.

    Raises:
        SolverError: H is not positive definite.
    """
    matrix = hessian.take()
    _reverse(matrix)
    # Symmetric: seen by columns it is the same matrix, in the order in which it can be factorised in place.
    upper = checked_cholesky(matrix.mT, hessian, in_place=True)
    _reverse(matrix)
    identity = torch.zeros_like(matrix).mT
    identity.diagonal().fill_(1.0)
    return upper.copy_(torch.linalg.solve_triangular(upper, identity, upper=True, out=identity))


def _reverse(matrix: Tensor) -> None:
    """Reverse the rows and the columns of a contiguous matrix in place."""
    flat = matrix.view(-1)
    last, step = len(flat), at_a_time(matrix.device, _IN_CACHE)
    for start in range(0, last // 2, step):
        stop = min(start + step, last // 2)
        front, back = flat[start:stop], flat[last - stop : last - start]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
