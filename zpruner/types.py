"""The frozen values that the rooms hand to each other, checked on construction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from zpruner.errors import MissingStatisticError, NonFiniteError, ShapeMismatchError
from zpruner.patterns import ComparisonGroup as ComparisonGroup
from zpruner.patterns import SparsityPattern as SparsityPattern
from zpruner.runtime.transfer import to_device

_ON_DEVICE = 1 << 24


class Stat(StrEnum):
    """A calibration statistic that a method may ask for."""

    SQ_SUM = "sq_sum"
    """Per input channel, the sum over all tokens of the squared input: float (in,)."""
    SUM = "sum"
    """Per input channel, the sum over all tokens of the input: float (in,)."""
    ABS_SUM = "abs_sum"
    """Per input channel, the sum over all tokens of the absolute input: float (in,)."""
    MAX_ABS = "max_abs"
    """Per input channel, the largest absolute input: float (in,)."""
    GRAM = "gram"
    """X X^T summed over all tokens: float32 (in, in)."""
    GRAM_HALF = "gram_half"
    """X X^T over the first half of the tokens of every batch: with the rest it tells what holds on other text."""
    SUM_HALF = "sum_half"
    """Per input channel, the sum over these tokens of the input: float (in,)."""
    CROSS = "cross"
    """X_dense X^T summed over all tokens, X_dense being the input in the unpruned model: float32 (in, in)."""
    CROSS_HALF = "cross_half"
    """The same over the tokens of `gram_half`."""
    DRIFT = "drift"
    """(H_dense - H) X^T summed over all tokens, H being the residual stream that the layer's output is added to:
    float32 (out, in). None where it is not, or not as it is."""
    GRAD_SQ = "grad_sq"
    """Per weight, the sum over windows of the squared loss gradient: float32 (out, in)."""
    EFFECT = "effect"
    """Per output, how much it counts in what its decoder block puts out: the sum over tokens of a squared derivative,
    float32 (out,)."""


CHANNEL_SUMS = frozenset({Stat.SQ_SUM, Stat.ABS_SUM, Stat.MAX_ABS})
"""Statistics of one number per channel that every artifact of activations has, so that a method listed later needs no
other calibration."""
SQUARES = frozenset({Stat.GRAM, Stat.GRAM_HALF, Stat.CROSS, Stat.CROSS_HALF})
"""Statistics of one number per pair of channels."""
RELATIVE = frozenset({Stat.CROSS, Stat.CROSS_HALF, Stat.DRIFT})
"""Statistics that set a half-pruned model against the unpruned one: there are none without pruned propagation."""
DERIVATIVES = frozenset({Stat.GRAD_SQ, Stat.EFFECT})
"""Statistics that are taken of the unpruned model alone, by passes back through it."""


_ONLY_PRUNED = "Set calibration.propagation: pruned: only then it differs from gram."
_COLLECTED = {
    Stat.GRAM: "Set calibration.gram: true or auto in params.yaml (in Python: gram among `stats`) and calibrate again.",
    Stat.EFFECT: "List the method in params.yaml (in Python: effect among `stats`) and calibrate again.",
    Stat.GRAD_SQ: "List the method in params.yaml (in Python: grad_sq among `stats`) and calibrate again.",
    Stat.DRIFT: "Set calibration.propagation: pruned: only then the residual stream differs.",
    Stat.CROSS: _ONLY_PRUNED,
    Stat.CROSS_HALF: _ONLY_PRUNED,
}
"""How a statistic comes to be collected, where the name does not tell."""


@dataclass(frozen=True, repr=False)
class LayerStats:
    """Calibration statistics of one layer's input; fields not collected are None.

    Shapes: sq_sum, sum, sum_half, abs_sum, max_abs (in,); gram, gram_half, cross, cross_half (in, in); drift,
    grad_sq (out, in); effect (out,).
    `tokens` and `windows` count what the sums ran over. `energy` is ||W X||^2 of the unpruned layer, without its bias.
    """

    layer: str
    tokens: int
    windows: int
    sq_sum: Tensor | None = None
    sum: Tensor | None = None
    abs_sum: Tensor | None = None
    max_abs: Tensor | None = None
    gram: Tensor | None = None
    gram_half: Tensor | None = None
    sum_half: Tensor | None = None
    grad_sq: Tensor | None = None
    effect: Tensor | None = None
    cross: Tensor | None = None
    cross_half: Tensor | None = None
    drift: Tensor | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        widths = {value.shape[-1] for stat, value in self if stat is not Stat.EFFECT}
        if len(widths) > 1 or (self.gram is not None and self.gram.shape[0] != self.gram.shape[1]):
            raise ShapeMismatchError(
                f"statistics of layer {self.layer}",
                ", ".join(f"{stat.value} of shape {tuple(value.shape)}" for stat, value in self),
                "one number of input channels in all of them",
                "Run the calibrate stage again.",
            )

    def __repr__(self) -> str:
        found = ", ".join(f"{stat.value} {tuple(value.shape)}" for stat, value in self)
        return f"LayerStats({self.layer!r}, {self.tokens:,} tokens in {self.windows} windows: {found or 'nothing'})"

    def __iter__(self) -> Iterator[tuple[Stat, Tensor]]:
        """Yield the statistics that were collected."""
        for stat in Stat:
            if (value := self.find(stat)) is not None:
                yield stat, value

    @property
    def width(self) -> int | None:
        """Number of input channels; None where nothing was collected."""
        return next((value.shape[-1] for stat, value in self if stat is not Stat.EFFECT), None)

    def find(self, stat: Stat) -> Tensor | None:
        """Return the statistic, or None where it was not collected."""
        value: Tensor | None = getattr(self, stat.value)
        return value

    def require(self, stat: Stat) -> Tensor:
        """Return the statistic, or raise MissingStatisticError that says how to collect it."""
        value = self.find(stat)
        if value is None:
            raise MissingStatisticError(
                f"layer {self.layer}",
                f"statistics without {stat.value}",
                f"{stat.value}, which the method needs",
                _COLLECTED.get(stat, f"Calibrate with {stat.value} among `stats`."),
            )
        return value

    def having(self, values: Mapping[Stat, Tensor]) -> LayerStats:
        """Return the same statistics with others in place of what was there of them, or of nothing."""
        also: dict[str, Any] = {stat.value: value for stat, value in values.items()}
        return replace(self, **also)

    def squared_norm(self) -> Tensor:
        """Return a_j, the squared input norm per window: float32 (in,)."""
        return (self.require(Stat.SQ_SUM).double() / self.windows).float()

    def mean(self) -> Tensor:
        """Return the mean of each input over tokens: float64 (in,)."""
        return self.require(Stat.SUM).double() / max(self.tokens, 1)

    def variance(self) -> Tensor:
        """Return the variance of each input over tokens, times their number: float64 (in,)."""
        total = self.require(Stat.SUM).double()
        return (self.require(Stat.SQ_SUM).double() - total.square() / max(self.tokens, 1)).clamp_min_(0.0)

    def reordered(self, columns: Tensor | None, rows: Tensor | None = None) -> LayerStats:
        """Return the statistics of a layer whose inputs, and outputs, are in another order.

        Args:
            columns: int64 (in,), the old place of each input; None: they stay.
            rows: int64 (out,), the old place of each output; None: they stay.
        """
        moved: dict[Stat, Tensor] = {}
        for stat, value in self:
            per_output = stat is Stat.EFFECT or (value.ndim > 1 and stat not in SQUARES)
            for axis in range(value.ndim):
                places = rows if per_output and axis == 0 else columns
                value = value if places is None else value.index_select(axis, places.to(value.device))
            moved[stat] = value
        return self.having(moved)

    def to(self, device: torch.device | str) -> LayerStats:
        """Return the same statistics on `device`."""
        return self.having({stat: to_device(value, device) for stat, value in self})


def at_a_time(device: torch.device, in_cache: int) -> int:
    """Return how many numbers to work on at a time.

    On the host `in_cache`, so many that temporaries stay in a core's cache; on an accelerator, where every call costs
    and memory is fast, many more (as many as float32 can count).
    """
    return in_cache if device.type == "cpu" else _ON_DEVICE


def all_finite(tensor: Tensor) -> bool:
    """Return whether a non-empty tensor holds neither NaN nor infinity, in one pass without a temporary."""
    low, high = torch.aminmax(tensor)  # NaN propagates into both
    return bool(torch.isfinite(low) & torch.isfinite(high))


@dataclass(frozen=True, repr=False)
class ScoreMatrix:
    """Importance of every weight of one layer: float32 (out, in), finite, larger = keep."""

    layer: str
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.dtype != torch.float32:
            raise ShapeMismatchError(
                f"scores of layer {self.layer}",
                f"{self.values.dtype} of shape {tuple(self.values.shape)}",
                "float32 of shape (out, in)",
                "Let the method's score() return one float32 value per weight.",
            )
        if not all_finite(self.values):
            raise NonFiniteError(
                f"scores of layer {self.layer}",
                "NaN or infinity",
                "finite scores",
                "Look for zero rows or overflow in the method's score().",
            )

    def __repr__(self) -> str:
        return f"ScoreMatrix({self.layer!r}, {tuple(self.values.shape)})"


@dataclass(frozen=True, repr=False)
class Mask:
    """Which weights of one layer stay: bool (out, in), True = kept.

    `chosen` is what settings that choose themselves came to, by name. `order`, int64 (in,), has the
    old places of the inputs where the mask is N:M in another order than that of its columns.
    """

    layer: str
    keep: Tensor
    chosen: Mapping[str, float] = field(default_factory=dict)
    order: Tensor | None = None

    def __post_init__(self) -> None:
        if self.keep.ndim != 2 or self.keep.dtype != torch.bool:
            raise ShapeMismatchError(
                f"mask of layer {self.layer}",
                f"{self.keep.dtype} of shape {tuple(self.keep.shape)}",
                "bool of shape (out, in)",
                "Derive the mask with zpruner.masks.",
            )

    def __repr__(self) -> str:
        return f"Mask({self.layer!r}, {tuple(self.keep.shape)}, sparsity={self.sparsity:.4f})"

    @property
    def sparsity(self) -> float:
        """The share of weights removed."""
        return 1.0 - float(self.keep.sum()) / self.keep.numel()

    def to(self, device: torch.device | str) -> Mask:
        """Return the same mask on `device`."""
        return replace(self, keep=to_device(self.keep, device))


def check_weight(weight: Tensor, stats: LayerStats) -> None:
    """Raise NonFiniteError or ShapeMismatchError naming the layer of a weight, (out, in), that cannot be pruned."""
    if not all_finite(weight):
        raise NonFiniteError(
            f"weight of layer {stats.layer}",
            "NaN or infinity",
            "finite weights",
            "The checkpoint is damaged: check it.",
        )
    if stats.width not in (None, weight.shape[1]):
        raise ShapeMismatchError(
            f"layer {stats.layer}",
            f"a weight with {weight.shape[1]} inputs and statistics of {stats.width}",
            "the same number of input channels",
            "Calibrate the model that is pruned.",
        )
