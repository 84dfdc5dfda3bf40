"""Which values quantised weights can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, did_you_mean

Bits = Literal[8, 4, 3]
Group = Literal["row", 128, 32]


@dataclass(frozen=True)
class Grid:
    """Integers of `bits` bits, and how many consecutive kept weights of a row share a scale; symmetric around 0."""

    bits: Bits
    group: Group = "row"

    def __post_init__(self) -> None:
        for name, got, known in (("bits", self.bits, get_args(Bits)), ("group", self.group, get_args(Group))):
            if got not in known or isinstance(got, bool):
                expected = f"one of {', '.join(map(str, known))}"
                raise InvalidSettingError(f"grid.{name}", repr(got), expected, did_you_mean(str(got), map(str, known)))

    @property
    def low(self) -> int:
        """The least integer: -127, -8 or -4."""
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The greatest integer: 127, 7 or 3."""
        return (1 << (self.bits - 1)) - 1

    @property
    def scale_dtype(self) -> torch.dtype:
        """Of the scales: float32 for rows; bfloat16 for groups, whose range is that of float32."""
        return torch.float32 if self.group == "row" else torch.bfloat16

    def size(self, width: int) -> int:
        """Return how many kept weights share a scale in a row of `width` columns, all of them where it is the row."""
        return width if self.group == "row" else self.group


def nearest_integers(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """Return the integers whose multiples of `scale` lie nearest, ties to even, and the ends beyond them.

    Args:
        weight: float32, finite.
        scale: float32 of either sign, broadcast against `weight`; where it is 0, so is the integer.
        grid: bounds the integers.

    Returns:
        float32 of the broadcast shape, whole numbers in [grid.low, grid.high].
    """
    whole = (weight / scale).round_().clamp_(grid.low, grid.high)
    return torch.where(scale == 0, 0.0, whole)
