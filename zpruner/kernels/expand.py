"""Packed matrices written out with torch alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def expand_rows(bitmask: Tensor, values: Tensor, offsets: Tensor, columns: int, start: int, stop: int) -> Tensor:
    """Return rows [start, stop) with their zeros, (stop - start, columns) in the values' dtype."""
    first, last = int(offsets[start]), int(offsets[stop])
    keep = unpack_bits(bitmask[start:stop], columns)
    out = torch.zeros(stop - start, columns, dtype=values.dtype, device=values.device)
    # As whole numbers: assigning keeps every bit of these, whatever the format is.
    whole = _WHOLE[values.element_size()]
    out.view(whole)[keep] = values[first:last].view(whole)
    return out


def unpack_bits(bitmask: Tensor, columns: int) -> Tensor:
    """Return bool (rows, columns) from uint8 (rows, bytes), least significant bit first."""
    bits = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    return (bitmask.unsqueeze(-1) >> bits & 1).flatten(1)[:, :columns].bool()
