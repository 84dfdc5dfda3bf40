"""Integers as they are stored, and the weights that they stand for; with torch alone, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.kernels.parts import Layout, starts_of

_BLOCK = 32
"""Integers of 4 bits whose low and high halves of bytes lie together."""


def nibble_places(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the integers of 4 bits of rows lie.

    A row begins with a byte. Of each 32 consecutive integers of it, and of those that are left, the first half (rounded
    up) are the low, the others the high halves of as many bytes.

    Args:
        counts: int64 (rows): how many integers each row has.

    Returns:
        Row after row, for every integer: the number of its byte, int64, and whether it is the high half, bool.
    """
    starts, bytes_before = starts_of(counts), starts_of((counts + 1) // 2)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    at = torch.arange(len(row), device=counts.device) - starts[row]
    within = at % _BLOCK
    half = ((counts[row] - (at - within)).clamp_max_(_BLOCK) + 1) // 2
    high = within >= half
    return bytes_before[row] + (at - within) // 2 + torch.where(high, within - half, within), high


def pack_nibbles(integers: Tensor, counts: Tensor) -> Tensor:
    """Return integers of 4 bits, int8, row after row, two to a byte: uint8.

    Args:
        integers: -8 to 7.
        counts: how many of them each row has.
    """
    place, high = nibble_places(counts)
    out = torch.zeros(int(((counts + 1) // 2).sum()), dtype=torch.uint8, device=integers.device)
    code = integers.view(torch.uint8) & 15
    out[place[~high]] = code[~high]
    out[place[high]] |= code[high] << 4
    return out


def weights_of(layout: Layout, values: Tensor, scales: Tensor, counts: Tensor) -> Tensor:
    """Return the weights that integers stand for, one after another, in the layout's dtype.

    Args:
        layout: with codes.
        values: as stored, of some rows.
        scales: of these rows.
        counts: int64 (rows): how many weights each of them has.
    """
    codes = layout.codes
    assert codes is not None
    if codes.bits == 4:
        place, high = nibble_places(counts)
        code = values[place]
        values = ((torch.where(high, code >> 4, code & 15) ^ 8).to(torch.int8)) - 8
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    scale = row
    if codes.group:
        at = torch.arange(len(row), device=counts.device) - starts_of(counts)[row]
        scale = starts_of(layout.scales(counts))[row] + at // codes.group
    return (values.float() * scales.float()[scale]).to(layout.dtype).add_(0.0)  # turns -0.0 into 0.0
