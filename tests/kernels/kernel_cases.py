"""What the kernel tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zpruner.kernels import Kernels, SparseMatrix
from zpruner.kernels.build import library_file
from zpruner.kernels.library import Isa, open_library
from zpruner.packed.encode import bitmask_of, offsets_of, values_of

LIBRARY = open_library(library_file())
ISAS = [isa for isa in Isa if LIBRARY.zp_supports(isa)]
SHAPES = ((0, 64), (1, 1), (1, 64), (3, 0), (5, 63), (4, 65), (3, 127), (2, 193), (17, 31))
EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-23}


def kernels_of(isa: Isa) -> Kernels:
    return Kernels(LIBRARY, isa, "a test")


def random_weight(rows: int, columns: int, share: float, dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(rows * 1000 + columns)
    weight = torch.randn(rows, columns, generator=draw)
    weight[torch.rand(rows, columns, generator=draw) < share] = 0
    return weight.to(dtype)


def packed(weight: Tensor, isa: Isa) -> SparseMatrix:
    keep = weight != 0
    rows, columns = weight.shape
    parts = bitmask_of(keep), values_of(weight, keep), offsets_of(keep)
    return SparseMatrix(kernels_of(isa), "w", *parts, rows, columns)


def within_rounding(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether y is x W^T + bias in float64, but for float32 sums in any order and the rounding to its own format."""
    wide, matrix = x.double().numpy(), weight.double().numpy()
    expected = wide @ matrix.T + (0 if bias is None else bias.double().numpy())
    size = np.abs(wide) @ np.abs(matrix).T + np.abs(expected)
    bound = size * (weight.shape[1] + 2) * 2.0**-24 + np.abs(expected) * EPSILON[y.dtype] + 1e-30
    return y.shape == expected.shape and bool((np.abs(y.double().numpy() - expected) <= bound).all())
