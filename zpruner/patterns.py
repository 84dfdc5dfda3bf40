"""What is removed, and which weights compete: values that settings are read into, without torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from zpruner.errors import InvalidPatternError, shown


class ComparisonGroup(StrEnum):
    """Which weights compete with each other under unstructured pruning."""

    ROW = "row"
    """Each output neuron loses the same number of weights."""
    LAYER = "layer"
    """The weights of one matrix compete."""


@dataclass(frozen=True)
class SparsityPattern:
    """What share of the weights goes, or N:M: N of every M consecutive inputs of a row stay.

    Exactly one of `ratio` and (`kept`, `group_size`) is set; use `parse`.
    """

    ratio: float | None = None
    kept: int | None = None
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None:
            if self.kept is not None or self.group_size is not None or not 0.0 <= self.ratio < 1.0:
                raise _bad_pattern(f"{self.ratio!r}")
        elif self.kept is None or self.group_size is None or not 0 < self.kept < self.group_size:
            raise _bad_pattern(f"'{self.kept}:{self.group_size}'")

    @classmethod
    def parse(cls, value: float | str) -> SparsityPattern:
        """Read `0.5`, `"0.5"`, `"2:4"` or `2of4`, the same in letters that no YAML takes for a number.

        Raises:
            InvalidPatternError: outside [0, 1), or not N:M with 0 < N < M.
        """
        if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,9})(?::|of)([0-9]{1,9})", value.strip())):
            return cls(kept=int(match[1]), group_size=int(match[2]))
        if isinstance(value, bool):
            raise _bad_pattern(shown(value))
        try:
            return cls(ratio=float(value))
        except (TypeError, ValueError, OverflowError):  # the last: an integer beyond every float
            raise _bad_pattern(shown(value)) from None

    @property
    def is_nm(self) -> bool:
        """Whether the pattern is N:M."""
        return self.ratio is None

    @property
    def sparsity(self) -> float:
        """The share of weights removed, in [0, 1)."""
        if self.kept is not None and self.group_size is not None:
            return 1.0 - self.kept / self.group_size
        assert self.ratio is not None
        return self.ratio

    def check_width(self, width: int, layer: str) -> None:
        """Raise InvalidPatternError naming `layer` unless M divides `width`, its number of inputs."""
        if self.group_size is not None and width % self.group_size:
            raise InvalidPatternError(
                f"layer {layer}",
                f"{width} inputs for the pattern {self}",
                f"a width that {self.group_size} divides",
                "Choose another pattern, or list the layer under model.ignore in params.yaml.",
            )

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.kept}:{self.group_size}"
        short = f"{self.ratio:g}"
        return short if float(short) == self.ratio else repr(float(self.ratio))  # `parse` reads the same number again


def _bad_pattern(got: str) -> InvalidPatternError:
    return InvalidPatternError(
        "sparsity",
        got,
        'a ratio in [0, 1) such as 0.5, or N:M with 0 < N < M such as "2:4" (N of every M are kept)',
        "Write N:M in quotes, or as 2of4: without, some programs read and write 2:4 as the number 124.",
    )
