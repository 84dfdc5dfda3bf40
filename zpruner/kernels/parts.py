"""What a packed matrix is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

Count = TypeVar("Count", int, Tensor)

PADDING_BYTES = 64
"""Zeros behind the last value, so that whole vectors can be loaded."""
WORD = 64
"""Columns per word of a bitmask; rows of it are whole words."""


def words(columns: int) -> int:
    """Return how many words of the bitmask a row takes."""
    return -(-columns // WORD)


@dataclass(frozen=True)
class Codes:
    """How integers stand for weights: integer times scale, a float32 product rounded once; never -0.0.

    Attributes:
        bits: 8 or 4, two's complement.
        group: consecutive kept weights of a row that share a scale, a multiple of 32; 0: all of the row.
    """

    bits: int
    group: int


@dataclass(frozen=True)
class Layout:
    """What a packed matrix is like.

    Attributes:
        rows: outputs.
        columns: inputs.
        dtype: of the weights.
        masked: whether pruned weights are left out; else every weight is stored.
        codes: how integers stand for the weights; None: the values are the weights.
    """

    rows: int
    columns: int
    dtype: torch.dtype
    masked: bool = True
    codes: Codes | None = None

    @classmethod
    def of(cls, weight: Tensor) -> Layout:
        """Return that of a weight (rows, columns) whose zeros are left out."""
        rows, columns = weight.shape
        return cls(rows, columns, weight.dtype)

    @property
    def value_dtype(self) -> torch.dtype:
        """Of the values: two integers of 4 bits share a byte."""
        if self.codes is None:
            return self.dtype
        return torch.int8 if self.codes.bits == 8 else torch.uint8

    @property
    def padding(self) -> int:
        """How many values the padding is."""
        return PADDING_BYTES // self.value_dtype.itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """Which parts there are."""
        masked, coded = self.masked, self.codes is not None
        there = {"bitmask": masked, "values": True, "offsets": masked, "scales": coded}
        return tuple(name for name, present in there.items() if present)

    def stored(self, counts: Count) -> Count:
        """Return how many elements of the values rows take that hold `counts` weights."""
        return (counts + 1) // 2 if self.codes is not None and self.codes.bits == 4 else counts

    def scales(self, counts: Tensor) -> Tensor:
        """Return how many scales rows have that hold `counts` weights."""
        if self.codes is None:
            return torch.zeros_like(counts)
        if not self.codes.group:
            return torch.ones_like(counts)
        return -(-counts // self.codes.group)


@dataclass(frozen=True)
class Parts:
    """The tensors of a packed matrix (docs/packed.md).

    Attributes:
        values: of the kept weights, row after row, and 64 bytes of zeros.
        bitmask: uint8 (rows, ceil(columns / 64) * 8), bit i of byte j is column 8 j + i; None: all are kept.
        offsets: int32 or int64 (rows + 1), the number of each row's first value and that of all; None as the bitmask.
        scales: float32, float16 or bfloat16 (scales of all rows), row after row; None where values are the weights.
    """

    values: Tensor
    bitmask: Tensor | None = None
    offsets: Tensor | None = None
    scales: Tensor | None = None

    def on_cpu(self) -> Parts:
        """Return them contiguous on the CPU, without gradients."""
        values, *others = (
            None if part is None else part.detach().cpu().contiguous()
            for part in (self.values, self.bitmask, self.offsets, self.scales)
        )
        assert values is not None
        return Parts(values, *others)


def starts_of(counts: Tensor) -> Tensor:
    """Return where each of `counts` consecutive runs begins and where the last one ends, int64 (rows + 1)."""
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])
