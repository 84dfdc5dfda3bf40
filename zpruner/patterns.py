"""What is removed, and which weights compete: values that settings are read into, without torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from zpruner.errors import InvalidPatternError, did_you_mean, shown


class ComparisonGroup(StrEnum):
    """Which weights compete with each other under unstructured pruning."""

    ROW = "row"
    """Each output neuron loses the same number of weights."""
    LAYER = "layer"
    """The weights of one matrix compete."""


class StructureKind(StrEnum):
    """What structured pruning takes out whole, so that a smaller dense model is left."""

    NEURONS = "neurons"
    """Intermediate channels of every MLP, or of every expert: its width."""
    GROUPS = "groups"
    """Key-value heads of every attention, each with the query heads that read it."""
    BLOCKS = "blocks"
    """Decoder blocks: the depth."""
    EXPERTS = "experts"
    """Experts of every mixture."""


class Permutation(StrEnum):
    """What is put into another order before N:M, which compares neighbouring inputs."""

    NEURONS = "neurons"
    """Intermediate channels of every MLP, or of every expert; the checkpoint is N:M as it lies."""
    HEADS = "heads"
    """Value dimensions of every attention head, the same in heads that share values; N:M as it lies."""
    STREAM = "stream"
    """Channels of the residual stream, all of the model's alike; N:M as it lies."""
    CHANNELS = "channels"
    """Inputs of every layer by itself, as RIA: N:M only where its inputs are gathered in that order at run time."""


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
        return _plain(self.ratio)


@dataclass(frozen=True)
class StructuredPattern:
    """What share of a model's structures goes, by kind; every block and every mixture loses the same number.

    Use `parse`. Written `neurons:0.25 groups:1/3 multiple:64`, in any order.

    Attributes:
        shares: kind -> share in (0, 1), in the order of `StructureKind`.
        multiple: what the number of neurons left is a multiple of.
    """

    shares: tuple[tuple[StructureKind, float], ...]
    multiple: int = 1

    @classmethod
    def parse(cls, value: str) -> StructuredPattern:
        """Read `neurons:0.25`, `neurons:0.25 groups:1/3` or `neurons:0.25 multiple:64`.

        Raises:
            InvalidPatternError: an unknown kind, one named twice, or a share outside (0, 1).
        """
        found: dict[str, str] = {}
        for word in value.split():
            name, _, number = word.partition(":")
            if name not in _WORDS:
                raise InvalidPatternError(
                    "sparsity",
                    shown(word),
                    "a structure and its share such as neurons:0.25",
                    did_you_mean(name, _WORDS),
                )
            if name in found:
                raise InvalidPatternError("sparsity", f"{name} twice in {shown(value)}", "each once", "Leave one out.")
            found[name] = number
        multiple = found.pop("multiple", None)
        shares = tuple((kind, _share(kind, found[kind])) for kind in StructureKind if kind in found)
        if not shares or (multiple is not None and StructureKind.NEURONS not in found):
            raise InvalidPatternError(
                "sparsity", shown(value), "a structure's share; multiple beside neurons", "Write e.g. neurons:0.25."
            )
        return cls(shares, 1 if multiple is None else _multiple(multiple))

    def share(self, kind: StructureKind) -> float:
        """Return the share of the structures of one kind that goes; 0 where none does."""
        return dict(self.shares).get(kind, 0.0)

    def __contains__(self, kind: StructureKind) -> bool:
        """Return whether structures of this kind go."""
        return kind in dict(self.shares)

    def __iter__(self) -> Iterator[StructureKind]:
        """Yield the kinds of which structures go."""
        yield from (kind for kind, _ in self.shares)

    def kept(self, kind: StructureKind, count: int, where: str, step: int = 1) -> int:
        """Return how many of `count` structures stay: the nearest number to the share, ties to more.

        Args:
            kind: of the structures.
            count: how many there are.
            where: what has them, for messages.
            step: what that number is a multiple of, beside `multiple`; divides `count`.

        Raises:
            InvalidPatternError: that is none, or all of them.
        """
        unit = math.lcm(step, self.multiple if kind is StructureKind.NEURONS else 1)
        share = self.share(kind)
        kept = math.floor(count * (1 - share) / unit + 0.5 + 1e-9) * unit
        if not 0 < kept < count:
            of = f" in multiples of {unit}" if unit > 1 else ""
            got = f"{count} {kind}, of which {share:.4g}{of} is {'none' if kept >= count else 'all'}"
            action = f"Take another share of {kind}{of and ', or another multiple'}, or leave {kind} out."
            raise InvalidPatternError(where, got, "some to go and some to stay", action)
        return kept

    def __str__(self) -> str:
        words = [f"{kind}:{_plain(share)}" for kind, share in self.shares]
        return " ".join([*words, f"multiple:{self.multiple}"] if self.multiple > 1 else words)


Pattern = SparsityPattern | StructuredPattern
"""What a value under `sparsities` is read into."""

_WORDS = (*(str(kind) for kind in StructureKind), "multiple")


def parse_pattern(value: float | str) -> Pattern:
    """Read a ratio, N:M, or structures and their shares.

    Raises:
        InvalidPatternError: none of these, or out of range.
    """
    structured = isinstance(value, str) and re.match(r"\s*[A-Za-z_]+\s*:", value)
    return StructuredPattern.parse(str(value)) if structured else SparsityPattern.parse(value)


def _share(kind: StructureKind, text: str) -> float:
    """Read `0.25` or `1/4`."""
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    try:
        share = int(match[1]) / int(match[2]) if match else float(text)
    except (ValueError, ZeroDivisionError):
        share = math.nan
    if not 0.0 < share < 1.0:
        raise InvalidPatternError(
            "sparsity", shown(f"{kind}:{text}"), "a share between 0 and 1 such as 0.25 or 1/3", f"Write {kind}:0.25."
        )
    return share


def _multiple(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise InvalidPatternError(
            "sparsity", shown(f"multiple:{text}"), "a whole number above 0", "Write e.g. multiple:64."
        )
    return int(text)


def _plain(ratio: float) -> str:
    """Return the shortest usual form that is read as the same number again."""
    short = f"{ratio:g}"
    return short if float(short) == ratio else repr(float(ratio))


def _bad_pattern(got: str) -> InvalidPatternError:
    return InvalidPatternError(
        "sparsity",
        got,
        'a ratio in [0, 1) such as 0.5, N:M with 0 < N < M such as "2:4" (N of every M are kept), or "neurons:0.25"',
        "Write N:M in quotes, or as 2of4: without, some programs read and write 2:4 as the number 124.",
    )
