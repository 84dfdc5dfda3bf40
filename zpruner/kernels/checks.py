"""What a packed matrix must be before any code follows its offsets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zpruner.errors import ArtifactError
from zpruner.kernels.parts import PADDING_BYTES, WORD, Layout, Parts, words

_SCALES = (torch.float32, torch.float16, torch.bfloat16)
_BITS = (8, 4)
_BLOCK = 32


def check_packed(where: str, layout: Layout, parts: Parts) -> Tensor:
    """Raise ArtifactError unless the tensors are a packed matrix of that layout.

    Args:
        where: names them in the error.
        layout: what they should be.
        parts: what they are.

    Returns:
        How many weights every row holds, int64 (rows).
    """
    check_codes(where, layout)
    for name in ("bitmask", "values", "offsets", "scales"):
        if (getattr(parts, name) is not None) != (name in layout.names):
            there = "no " if name in layout.names else ""
            raise _broken(where, f"{there}{name}", f"{', '.join(layout.names)}")
    counts = (
        _masked_counts(where, layout, parts)
        if layout.masked
        else torch.full((layout.rows,), layout.columns, device="cpu")
    )
    values, stored = parts.values, layout.stored(counts)
    right = values.ndim == 1 and values.dtype == layout.value_dtype
    _check(right, where, "values", values, f"{_name(layout.value_dtype)} of one dimension")
    if layout.masked:
        _check_offsets(where, parts, stored)
    expected = int(stored.sum()) + layout.padding
    if values.numel() != expected:
        raise _broken(where, f"{values.numel()} values", f"{expected}: those of the mask and {layout.padding} zeros")
    if values[expected - layout.padding :].view(torch.uint8).any():
        raise _broken(where, "numbers behind the last value", f"{PADDING_BYTES} bytes of zeros")
    if parts.scales is not None:
        _check_scales(where, parts.scales, int(layout.scales(counts).sum()))
    return counts


def check_codes(where: str, layout: Layout) -> None:
    """Raise ArtifactError for integers that no kernel reads.

    Args:
        where: names the matrix in the error.
        layout: of it.
    """
    codes = layout.codes
    if codes is not None and (codes.bits not in _BITS or codes.group < 0 or codes.group % _BLOCK):
        expected = f"8 or 4 bits, and groups of a multiple of {_BLOCK} or 0"
        raise _broken(where, f"{codes.bits} bits in groups of {codes.group}", expected)


def _masked_counts(where: str, layout: Layout, parts: Parts) -> Tensor:
    """Return the bits of each row of the mask, after checking it."""
    assert parts.bitmask is not None
    bitmask, columns, shape = parts.bitmask, layout.columns, (layout.rows, words(layout.columns) * 8)
    _check(bitmask.dtype == torch.uint8 and tuple(bitmask.shape) == shape, where, "bitmask", bitmask, f"uint8 {shape}")
    bits = np.ascontiguousarray(bitmask.detach().cpu().numpy())
    if layout.rows and columns % WORD:
        beyond = bits.view("<u8")[:, -1] >> np.uint64(columns % WORD)
        if beyond.any():
            raise _broken(where, f"bits beyond column {columns} in row {int(beyond.argmax())}", "zeros there")
    return torch.from_numpy(np.bitwise_count(bits.view(np.uint64)).sum(axis=1, dtype=np.int64))


def _check_offsets(where: str, parts: Parts, stored: Tensor) -> None:
    assert parts.offsets is not None
    offsets, rows = parts.offsets, len(stored)
    whole = offsets.dtype in (torch.int32, torch.int64) and tuple(offsets.shape) == (rows + 1,)
    _check(whole, where, "offsets", offsets, f"int32 or int64 ({rows + 1},)")
    starts = offsets.detach().cpu().to(torch.int64)
    if starts[0] != 0:
        raise _broken(where, f"a first offset of {starts[0]}", "0")
    wrong = torch.nonzero(starts.diff() != stored)
    if len(wrong):
        row = int(wrong[0])
        got = int(starts[row + 1]) - int(starts[row])
        raise _broken(where, f"offsets that give row {row} {got} values", f"{stored[row]}, by the bits of its mask")


def _check_scales(where: str, scales: Tensor, count: int) -> None:
    right = scales.dtype in _SCALES and tuple(scales.shape) == (count,)
    _check(right, where, "scales", scales, f"a floating type ({count},)")
    size = scales.detach().cpu().float().abs()
    if not bool(((size == 0) | (size.isfinite() & (size >= torch.finfo(torch.float32).tiny))).all()):
        raise _broken(where, "a scale that is no normal number", "normal numbers and zeros")


def _check(right: bool, where: str, part: str, got: Tensor, expected: str) -> None:
    if not right:
        raise _broken(f"{where}_{part}", f"{_name(got.dtype)} {tuple(got.shape)}", expected)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _broken(where: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(where, got, expected, "Pack the model again.")
