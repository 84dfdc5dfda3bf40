"""The tensors of a packed matrix, from a matrix and its mask; and which of its zeros are negative."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zpruner.kernels.integers import pack_nibbles
from zpruner.kernels.parts import PADDING_BYTES, WORD, Layout, Parts, starts_of, words
from zpruner.packed.size import INT32_LIMIT

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 22
"""Integers whose places are found at a time."""
_SIGNED_ZERO = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


def bits_of(tensor: Tensor) -> Tensor:
    """Return the same memory as whole numbers: every bit is kept, whatever the format."""
    return tensor.view(_WHOLE[tensor.element_size()])


def nonzero(tensor: Tensor) -> Tensor:
    """Return where a number is neither +0.0 nor -0.0; bool, of its shape."""
    bits = bits_of(tensor)
    return (bits != 0) & (bits != _negative_zero(bits)) if tensor.dtype in _SIGNED_ZERO else bits != 0


def negative_zeros(tensor: Tensor) -> Tensor:
    """Return where a number is -0.0; bool, of its shape."""
    bits = bits_of(tensor)
    if tensor.dtype not in _SIGNED_ZERO:
        return torch.zeros_like(bits, dtype=torch.bool)
    return bits == _negative_zero(bits)


def put_negative_zeros(tensor: Tensor, where: Tensor) -> None:
    """Write -0.0 into `tensor` where the bool mask says."""
    bits = bits_of(tensor)
    bits[where] = _negative_zero(bits)


def bitmask_of(keep: Tensor) -> Tensor:
    """Return uint8 (rows, ceil(columns / 64) * 8) of a bool mask (rows, columns)."""
    rows, columns = keep.shape
    padded = np.zeros((rows, words(columns) * WORD), dtype=bool)
    padded[:, :columns] = keep.numpy()
    return torch.from_numpy(np.packbits(padded, axis=1, bitorder="little"))


def parts_of(weight: Tensor, keep: Tensor) -> Parts:
    """Return a packed matrix whose values are the kept weights.

    Args:
        weight: (rows, columns).
        keep: bool, of its shape.
    """
    return Parts(values_of(weight, keep), bitmask_of(keep), offsets_of(Layout.of(weight), keep))


def coded_parts(layout: Layout, integers: Tensor, scales: Tensor, keep: Tensor | None) -> Parts:
    """Return a packed matrix whose values are integers.

    Args:
        layout: with codes; masked where there is a mask.
        integers: int8 (rows, columns), as far as they are kept within the bits of the codes.
        scales: of the groups of all rows, row after row.
        keep: bool (rows, columns), or None where nothing is left out.
    """
    if keep is None:
        return Parts(codes_of(layout, integers, torch.ones_like(integers, dtype=torch.bool)), scales=scales)
    return Parts(codes_of(layout, integers, keep), bitmask_of(keep), offsets_of(layout, keep), scales)


def values_of(weight: Tensor, keep: Tensor) -> Tensor:
    """Return the kept values, row after row, and 64 bytes of zeros."""
    whole = bits_of(weight)
    padding = torch.zeros(PADDING_BYTES // weight.element_size(), dtype=whole.dtype)
    return torch.cat([whole[keep], padding]).view(weight.dtype)


def codes_of(layout: Layout, integers: Tensor, keep: Tensor) -> Tensor:
    """Return kept integers as they are stored, row after row, and 64 bytes of zeros: int8, or uint8 for 4 bits."""
    if layout.codes is None or layout.codes.bits == 8:
        return values_of(integers, keep)
    rows = max(1, _AT_ONCE // max(1, layout.columns))
    pieces = [
        pack_nibbles(some[kept], kept.sum(dim=1))
        for some, kept in zip(integers.split(rows), keep.split(rows), strict=True)
    ]
    return torch.cat([*pieces, torch.zeros(PADDING_BYTES, dtype=torch.uint8)])


def scales_of(layout: Layout, scales: Tensor, keep: Tensor) -> Tensor:
    """Return the scales of all groups, row after row, from those of the weights, (rows, columns)."""
    if layout.codes is None or not layout.codes.group:  # a row's is that of its first kept weight
        first = scales.gather(1, keep.int().argmax(dim=1, keepdim=True)) if layout.columns else scales.sum(1, True)
        return torch.where(keep.any(dim=1), first.squeeze(1), 0.0)
    begins = (keep.cumsum(dim=1) - 1) % layout.codes.group == 0
    return scales[keep & begins]


def offsets_of(layout: Layout, keep: Tensor) -> Tensor:
    """Return the number of each row's first value and that of all, (rows + 1): int32, or int64 from 2^31 values."""
    offsets = starts_of(layout.stored(keep.sum(dim=1, dtype=torch.int64)))
    return offsets if int(offsets[-1]) >= INT32_LIMIT else offsets.to(torch.int32)


def _negative_zero(bits: Tensor) -> int:
    return 128 if bits.dtype == torch.uint8 else torch.iinfo(bits.dtype).min
