"""What the kernel tests share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zpruner.kernels import Codes, Kernels, Layout, PackedMatrix, Parts
from zpruner.kernels.build import library_file
from zpruner.kernels.library import Isa, open_library
from zpruner.packed.encode import coded_parts, parts_of

LIBRARY = open_library(library_file())
ISAS = [isa for isa in Isa if LIBRARY.zp_supports(isa)]
SHAPES = ((0, 64), (1, 1), (1, 64), (3, 0), (5, 63), (4, 65), (3, 127), (2, 193), (17, 31))
CODES = tuple(Codes(bits, group) for bits in (8, 4) for group in (0, 32, 128))
EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10, torch.float32: 2.0**-23}


def kernels_of(isa: Isa) -> Kernels:
    return Kernels(LIBRARY, isa, "a test")


def random_weight(rows: int, columns: int, share: float, dtype: torch.dtype) -> Tensor:
    draw = torch.Generator().manual_seed(rows * 1000 + columns)
    weight = torch.randn(rows, columns, generator=draw)
    weight[torch.rand(rows, columns, generator=draw) < share] = 0
    return weight.to(dtype)


def packed(weight: Tensor, isa: Isa) -> PackedMatrix:
    return PackedMatrix(kernels_of(isa), "w", Layout.of(weight), parts_of(weight, weight != 0))


def coded(
    rows: int, columns: int, share: float | None, codes: Codes, dtype: torch.dtype, scale_dtype: torch.dtype
) -> tuple[Layout, Parts, Tensor]:
    """Random integers with scales of either sign, of a matrix with that share of zeros or of one without a mask, and
    the weights that they stand for: computed group by group."""
    draw = torch.Generator().manual_seed(rows * 1000 + columns + codes.bits + codes.group)
    least, most = (-127, 127) if codes.bits == 8 else (-8, 7)
    integers = torch.randint(least, most + 1, (rows, columns), generator=draw, dtype=torch.int8)
    keep = torch.rand(rows, columns, generator=draw) >= (share or 0.0)
    layout = Layout(rows, columns, dtype, share is not None, codes)
    scales, weight = [], torch.zeros(rows, columns, dtype=dtype)
    for row in range(rows):
        places = keep[row].nonzero().squeeze(1)
        groups = places.split(codes.group) if codes.group else (places,)
        for group in [found for found in groups if len(found) or not codes.group]:
            scale = (torch.randn(1, generator=draw) / 100).to(scale_dtype)
            scales.append(scale)
            product = integers[row, group].float().numpy() * np.float32(scale.float())
            weight[row, group] = torch.from_numpy(product).to(dtype)
    weight[weight == 0] = 0.0
    found = torch.cat(scales) if scales else torch.zeros(0, dtype=scale_dtype)
    return layout, coded_parts(layout, integers, found, None if share is None else keep), weight


def within_rounding(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether y is x W^T + bias in float64, but for float32 sums in any order and the rounding to its own format."""
    wide, matrix = x.double().numpy(), weight.double().numpy()
    expected = wide @ matrix.T + (0 if bias is None else bias.double().numpy())
    size = np.abs(wide) @ np.abs(matrix).T + np.abs(expected)
    bound = size * (weight.shape[1] + 2) * 2.0**-24 + np.abs(expected) * EPSILON[y.dtype] + 1e-30
    return y.shape == expected.shape and bool((np.abs(y.double().numpy() - expected) <= bound).all())
