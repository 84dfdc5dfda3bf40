"""The bytes of a packed tensor: the only arithmetic of the format's size."""

from __future__ import annotations

from zpruner.kernels.parts import PADDING_BYTES, WORD, words

MIN_SPARSITY = 0.1
"""Tensors with a smaller share of zeros stay as they are."""
INT32_LIMIT = 2**31
"""Offsets are int64 from this many values on."""


def bitmask_bytes(rows: int, columns: int) -> int:
    """Return the bytes of a bitmask: rows are whole words."""
    return rows * words(columns) * (WORD // 8)


def packed_bytes(rows: int, columns: int, kept: int, itemsize: int) -> int | None:
    """Return the bytes of bitmask, values and offsets; None where the tensor stays as it is.

    Args:
        rows: of the packed matrix (outputs; of a stack of experts, those of all).
        columns: of the packed matrix (inputs).
        kept: values kept.
        itemsize: bytes of a value.
    """
    weights = rows * columns
    offsets = (rows + 1) * (4 if kept < INT32_LIMIT else 8)
    size = bitmask_bytes(rows, columns) + offsets + kept * itemsize + PADDING_BYTES
    return size if kept <= (1 - MIN_SPARSITY) * weights and size < weights * itemsize else None
