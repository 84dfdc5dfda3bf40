"""What a packed matrix must be before any code follows its offsets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from zpruner.errors import ArtifactError

PADDING_BYTES = 64
"""Zeros behind the last value, so that whole vectors can be loaded."""
WORD = 64
"""Columns per word of a bitmask; rows of it are whole words."""


def words(columns: int) -> int:
    """Return how many words of the bitmask a row takes."""
    return -(-columns // WORD)


def check_packed(where: str, bitmask: Tensor, values: Tensor, offsets: Tensor, rows: int, columns: int) -> None:
    """Raise ArtifactError unless three tensors are a packed matrix of `rows` by `columns`.

    Args:
        where: names them in the error.
        bitmask: uint8 (rows, ceil(columns / 64) * 8); bit i of byte j is column 8 j + i.
        values: (kept + 64 bytes of padding): the kept values, row after row.
        offsets: int32 or int64 (rows + 1): the number of each row's first value, and that of all.
        rows: outputs.
        columns: inputs.
    """
    shape = (rows, words(columns) * 8)
    _check(bitmask.dtype == torch.uint8 and tuple(bitmask.shape) == shape, where, "bitmask", bitmask, f"uint8 {shape}")
    whole = offsets.dtype in (torch.int32, torch.int64) and tuple(offsets.shape) == (rows + 1,)
    _check(whole, where, "offsets", offsets, f"int32 or int64 ({rows + 1},)")
    _check(values.ndim == 1, where, "values", values, "one dimension")
    bits = np.ascontiguousarray(bitmask.detach().cpu().numpy())
    starts = offsets.detach().cpu().numpy().astype(np.int64)
    counts = np.bitwise_count(bits.view(np.uint64)).sum(axis=1, dtype=np.int64)
    if rows and columns % WORD:
        beyond = bits.view("<u8")[:, -1] >> np.uint64(columns % WORD)
        if beyond.any():
            raise _broken(where, f"bits beyond column {columns} in row {int(beyond.argmax())}", "zeros there")
    if starts[0] != 0:
        raise _broken(where, f"a first offset of {starts[0]}", "0")
    wrong = np.flatnonzero(np.diff(starts) != counts)
    if wrong.size:
        row = int(wrong[0])
        got = int(starts[row + 1]) - int(starts[row])
        raise _broken(where, f"offsets that give row {row} {got} values", f"{counts[row]}, the bits of its mask")
    padding = PADDING_BYTES // values.element_size()
    if values.numel() != starts[-1] + padding:
        raise _broken(
            where, f"{values.numel()} values", f"{starts[-1] + padding}: those of the mask and {padding} zeros"
        )
    if values[values.numel() - padding :].view(torch.uint8).any():
        raise _broken(where, "numbers behind the last value", f"{PADDING_BYTES} bytes of zeros")


def _check(right: bool, where: str, part: str, got: Tensor, expected: str) -> None:
    if not right:
        kind = str(got.dtype).removeprefix("torch.")
        raise _broken(f"{where}_{part}", f"{kind} {tuple(got.shape)}", expected)


def _broken(where: str, got: str, expected: str) -> ArtifactError:
    return ArtifactError(where, got, expected, "Pack the model again.")
