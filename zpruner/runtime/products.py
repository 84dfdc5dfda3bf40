"""Products of float32 matrices at the full speed of a processor."""

from __future__ import annotations

import torch
from torch import Tensor


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right`, (m, k) by (k, n), for matrices without gradients.

    torch hands float32 products on a CPU to MKL, which keeps to AVX2 on processors of other makers. oneDNN, by which
    torch multiplies shorter formats, takes whatever a processor has: measured on one core of an AMD EPYC (Zen 5) 236 to
    250 GFLOP/s in place of 109 to 114, with sums as exact.
    """
    alike = left.is_cpu and left.dtype == right.dtype == torch.float32 and left.numel() and right.numel()
    if not alike or not torch.backends.mkldnn.is_available():
        return left @ right
    if not (right.is_contiguous() or right.mT.is_contiguous()):
        right = right.contiguous()  # parts of wider rows would be multiplied one number at a time
    found: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.mT, None, "none", [], "")
    return found


def add_matmul(target: Tensor, left: Tensor, right: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Add `alpha * left @ right` to a matrix in place, and return it; see `matmul`."""
    return target.add_(matmul(left, right), alpha=alpha)
