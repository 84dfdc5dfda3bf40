"""The three tensors of a packed matrix, from a matrix and its mask."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.kernels.checks import PADDING_BYTES, WORD, words

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_INT32_LIMIT = 2**31


def nonzero_bits(weight: Tensor) -> Tensor:
    """Return where any bit of a number is set: everything but +0.0, so that -0.0 counts. Bool, of `weight`'s shape."""
    return weight.view(_WHOLE[weight.element_size()]) != 0


def bitmask_of(keep: Tensor) -> Tensor:
    """Return uint8 (rows, ceil(columns / 64) * 8) of a bool mask (rows, columns)."""
    rows, columns = keep.shape
    padded = torch.zeros(rows, words(columns) * WORD, dtype=torch.uint8)
    padded[:, :columns] = keep
    bits = padded.view(rows, words(columns) * 8, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(dim=2, dtype=torch.uint8)


def values_of(weight: Tensor, keep: Tensor) -> Tensor:
    """Return the kept values, row after row, and 64 bytes of zeros."""
    whole = weight.view(_WHOLE[weight.element_size()])
    padding = torch.zeros(PADDING_BYTES // weight.element_size(), dtype=whole.dtype)
    return torch.cat([whole[keep], padding]).view(weight.dtype)


def offsets_of(keep: Tensor) -> Tensor:
    """Return the number of each row's first value and that of all, (rows + 1): int32, or int64 from 2^31 values."""
    ends = keep.sum(dim=1, dtype=torch.int64).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return offsets if int(offsets[-1]) >= _INT32_LIMIT else offsets.to(torch.int32)
