"""What a packed tensor takes: the only arithmetic of the format's sizes."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.kernels.parts import WORD, Codes, Layout, words
from zpruner.quantization import Grid, QuantizedLayer

MIN_SPARSITY = 0.1
"""Tensors with a smaller share of zeros stay as they are, unless their values are integers."""
INT32_LIMIT = 2**31
"""Offsets are int64 from this many values on."""

Kinds = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Part -> its dtype and shape."""


def bitmask_bytes(rows: int, columns: int) -> int:
    """Return the bytes of a bitmask: rows are whole words."""
    return rows * words(columns) * (WORD // 8)


def codes_of_grid(grid: Grid) -> Codes:
    """Return how the integers of a grid are stored: 3 bits take 4."""
    return Codes(8 if grid.bits == 8 else 4, 0 if grid.group == "row" else grid.group)


def kinds_of(layout: Layout, counts: Tensor, scale_dtype: torch.dtype = torch.float32) -> Kinds:
    """Return the dtype and shape of every part of a packed matrix.

    Args:
        layout: of the matrix.
        counts: kept weights of each row, int64 (rows,).
        scale_dtype: that scales are stored in.
    """
    values = int(layout.stored(counts).sum())
    every: Kinds = {
        "bitmask": (torch.uint8, (layout.rows, words(layout.columns) * (WORD // 8))),
        "values": (layout.value_dtype, (values + layout.padding,)),
        "offsets": (torch.int32 if values < INT32_LIMIT else torch.int64, (layout.rows + 1,)),
        "scales": (scale_dtype, (int(layout.scales(counts).sum()),)),
    }
    return {part: every[part] for part in layout.names}


def packed_bytes(layout: Layout, counts: Tensor, scale_dtype: torch.dtype = torch.float32) -> int | None:
    """Return the bytes of all parts; None where the tensor stays as it is. Arguments as in `kinds_of`."""
    weights = layout.rows * layout.columns
    if layout.codes is None and int(counts.sum()) > (1 - MIN_SPARSITY) * weights:
        return None
    kinds = kinds_of(layout, counts, scale_dtype).values()
    size = sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in kinds)
    return size if size < weights * layout.dtype.itemsize else None


def quantized_bytes(found: QuantizedLayer, dtype: torch.dtype) -> int | None:
    """Return the bytes of a quantised layer's parts; None where it stays as it is: it would not become smaller.

    Args:
        found: the layer.
        dtype: of its weights.
    """
    rows, columns = found.integers.shape
    layout = Layout(rows, columns, dtype, not bool(found.keep.all()), codes_of_grid(found.grid))
    return packed_bytes(layout, found.keep.sum(dim=1), found.grid.scale_dtype)
