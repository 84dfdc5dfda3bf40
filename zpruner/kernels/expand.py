"""Packed matrices written out with torch alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.kernels.integers import weights_of
from zpruner.kernels.parts import Layout, Parts, starts_of

_WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 22
"""Weights that are made of integers at a time: each takes some words meanwhile."""


def expand_rows(layout: Layout, parts: Parts, start: int, stop: int) -> Tensor:
    """Return rows [start, stop) with their zeros, (stop - start, columns) in the layout's dtype.

    Args:
        layout: of the matrix.
        parts: of it, checked.
        start, stop: rows.
    """
    if layout.codes is None:
        return _expand(layout, parts, start, stop)
    if parts.bitmask is None:
        counts = torch.full((layout.rows,), layout.columns, device=parts.values.device)
    else:
        counts = _bit_counts(parts.bitmask)
    rows = max(1, _AT_ONCE // max(1, layout.columns))
    pieces = [_decode(layout, parts, counts, at, min(at + rows, stop)) for at in range(start, stop, rows)]
    return torch.cat(pieces) if pieces else torch.empty(0, layout.columns, dtype=layout.dtype)


def unpack_bits(bitmask: Tensor, columns: int) -> Tensor:
    """Return bool (rows, columns) from uint8 (rows, bytes), least significant bit first."""
    bits = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    return (bitmask.unsqueeze(-1) >> bits & 1).flatten(1)[:, :columns].bool()


def _expand(layout: Layout, parts: Parts, start: int, stop: int) -> Tensor:
    if parts.bitmask is None or parts.offsets is None:
        return parts.values[start * layout.columns : stop * layout.columns].view(stop - start, layout.columns)
    first, last = int(parts.offsets[start]), int(parts.offsets[stop])
    return _put(layout, unpack_bits(parts.bitmask[start:stop], layout.columns), parts.values[first:last])


def _decode(layout: Layout, parts: Parts, counts: Tensor, start: int, stop: int) -> Tensor:
    """Return rows whose weights are integers times scales; `counts` are those of all rows."""
    assert parts.scales is not None
    if parts.bitmask is None:
        keep = torch.ones(stop - start, layout.columns, dtype=torch.bool, device=parts.values.device)
    else:
        keep = unpack_bits(parts.bitmask[start:stop], layout.columns)
    places, groups = starts_of(layout.stored(counts)), starts_of(layout.scales(counts))
    values = parts.values[int(places[start]) : int(places[stop])]
    scales = parts.scales[int(groups[start]) : int(groups[stop])]
    return _put(layout, keep, weights_of(layout, values, scales, counts[start:stop]))


def _bit_counts(bitmask: Tensor) -> Tensor:
    """Return how many bits of each row are set, int64 (rows)."""
    ones = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8, device=bitmask.device)
    return ones[bitmask.int()].sum(dim=1, dtype=torch.int64)


def _put(layout: Layout, keep: Tensor, values: Tensor) -> Tensor:
    """Return the values where `keep` says, zeros elsewhere."""
    out = torch.zeros(keep.shape, dtype=layout.dtype, device=values.device)
    # As whole numbers: assigning keeps every bit of these, whatever the format is.
    whole = _WHOLE[values.element_size()]
    out.view(whole)[keep] = values.view(whole)
    return out
