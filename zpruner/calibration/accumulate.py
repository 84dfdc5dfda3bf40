"""Streaming sums over the tokens that one linear layer reads: one class per statistic."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

from zpruner.types import Stat, at_a_time

_CHUNK = 4096
"""Tokens converted to float32 at a time: bounds the temporary memory, and what units that cut sums off, as those of
GPUs may, can lose."""
_IN_CACHE = 1 << 19
"""Numbers of which the sums of channels are taken at a time: temporaries that fit the cache are twice as fast."""
_PANEL, _WIDE_PANEL = 192, 4096
"""Rows of a Gram matrix computed together on the host and on an accelerator: wide enough for full speed, narrow enough
to leave its lower half out."""


class _Sum:
    """One statistic over the tokens so far."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def blend(self, other: Tensor, weight: float) -> None:
        """Add what another has seen, each of its tokens counted `weight` times."""
        self.value.add_(other, alpha=weight)


class _ChannelSum(_Sum, ABC):
    """A statistic with one number per channel, float64 (in,): sums of few numbers at a time, which torch adds pairwise.

    2e-7 from float64, where vector_norm is up to 1e-4 off; it is faster, too.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(torch.zeros(width, dtype=torch.float64, device=device))

    @abstractmethod
    def add(self, inputs: Tensor, size: Tensor) -> None:
        """Add tokens, and their absolute values: float32 (tokens, in)."""


class _SquareSum(_ChannelSum):
    def add(self, inputs: Tensor, size: Tensor) -> None:
        self.value += size.square().sum(0)


class _PlainSum(_ChannelSum):
    def add(self, inputs: Tensor, size: Tensor) -> None:
        self.value += inputs.sum(0)


class _AbsoluteSum(_ChannelSum):
    def add(self, inputs: Tensor, size: Tensor) -> None:
        self.value += size.sum(0)


class _Maximum(_ChannelSum):
    def __init__(self, width: int, device: torch.device) -> None:
        _Sum.__init__(self, torch.zeros(width, dtype=torch.float32, device=device))

    def add(self, inputs: Tensor, size: Tensor) -> None:
        torch.maximum(self.value, size.amax(0), out=self.value)

    def blend(self, other: Tensor, weight: float) -> None:
        torch.maximum(self.value, other, out=self.value)


class _BatchSum(_Sum, ABC):
    """A statistic that sees the tokens of a batch together, float64 (in,)."""

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__(torch.zeros(width, dtype=torch.float64, device=device))

    @abstractmethod
    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor]) -> None:
        """Add tokens: float (tokens, in), and what of the same tokens is set against them, by statistic."""


class _HalfSum(_BatchSum):
    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor]) -> None:
        for chunk in _half(inputs).split(_CHUNK):
            self.value += chunk.sum(0, dtype=torch.float64)


class _ProductSum(_BatchSum, ABC):
    """A matrix of products of channels, float32 (in, in)."""

    def __init__(self, width: int, device: torch.device) -> None:
        _Sum.__init__(self, torch.zeros(width, width, dtype=torch.float32, device=device))


class _Gram(_ProductSum):
    half: Tensor | None = None
    """Where the same sum over half of the tokens is wanted, too: their products are taken once for both."""

    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor]) -> None:
        rest = inputs
        if self.half is not None:
            first = _half(inputs)
            rest = inputs[len(first) :]
            for chunk in first.split(_CHUNK):
                _add_gram((self.half, self.value), chunk.float())
        for chunk in rest.split(_CHUNK):
            _add_gram((self.value,), chunk.float())


class _HalfGram(_ProductSum):
    shared = False
    """Whether the sum over all tokens is taken, too, and adds to this one."""

    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor]) -> None:
        if not self.shared:
            for chunk in _half(inputs).split(_CHUNK):
                _add_gram((self.value,), chunk.float())


class _Cross(_ProductSum):
    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor]) -> None:
        dense = others[Stat.CROSS]
        self._add(inputs, dense.reshape(inputs.shape))

    def _add(self, inputs: Tensor, dense: Tensor) -> None:
        for mine, other in zip(inputs.split(_CHUNK), dense.split(_CHUNK), strict=True):
            self.value.addmm_(other.float().T, mine.float())


class _HalfCross(_Cross):
    def _add(self, inputs: Tensor, dense: Tensor) -> None:
        super()._add(_half(inputs), _half(dense))


_CHANNEL_SUMS: dict[Stat, type[_ChannelSum]] = {
    Stat.SQ_SUM: _SquareSum,
    Stat.SUM: _PlainSum,
    Stat.ABS_SUM: _AbsoluteSum,
    Stat.MAX_ABS: _Maximum,
}
_BATCH_SUMS: dict[Stat, type[_BatchSum]] = {
    Stat.GRAM: _Gram,
    Stat.GRAM_HALF: _HalfGram,
    Stat.SUM_HALF: _HalfSum,
    Stat.CROSS: _Cross,
    Stat.CROSS_HALF: _HalfCross,
}


class InputAccumulator:
    """Sums over the tokens of one captured input.

    Args:
        width: number of input channels.
        stats: which sums to take; statistics of gradients are not among those of an input and are passed over.
        device: where the sums lie.
    """

    def __init__(self, width: int, stats: Iterable[Stat], device: torch.device) -> None:
        self.width, self.stats, self.device = width, frozenset(stats), device
        self.tokens = 0
        self._channels = {stat: kind(width, device) for stat, kind in _CHANNEL_SUMS.items() if stat in self.stats}
        self._batches = {stat: kind(width, device) for stat, kind in _BATCH_SUMS.items() if stat in self.stats}
        whole, half = self._batches.get(Stat.GRAM), self._batches.get(Stat.GRAM_HALF)
        if isinstance(whole, _Gram) and isinstance(half, _HalfGram):
            whole.half, half.shared = half.value, True

    def add(self, inputs: Tensor, others: Mapping[Stat, Tensor] | None = None) -> None:
        """Add the tokens of `inputs`, float (..., in), and for relative statistics what they are set against."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if self._channels:
            for part in rows.split(max(1, at_a_time(rows.device, _IN_CACHE) // rows.shape[1])):
                values = part.float()
                size = values.abs()
                for channel in self._channels.values():
                    channel.add(values, size)
        if self._batches:
            with _exact_products(inputs.dtype):
                for batch in self._batches.values():
                    batch.add(rows, others or {})
        self.tokens += rows.shape[0]

    def empty_like(self) -> Self:
        """Return an accumulator of the same width and sums that has seen no token."""
        return type(self)(self.width, self.stats, self.device)

    def blend(self, other: Self, weight: float) -> None:
        """Add what `other` has seen, each of its tokens counted `weight` times; maxima are joined."""
        for stat, mine in self._sums():
            mine.blend(dict(other._sums())[stat].value, weight)
        self.tokens += round(weight * other.tokens)

    def state(self) -> dict[str, Tensor]:
        """Return the sums as tensors, for a snapshot or an artifact; the number of tokens is not among them."""
        return {stat.value: found.value for stat, found in self._sums()}

    def finite(self) -> bool:
        """Return whether no token had NaN or infinity, as far as the sums tell."""
        least = min((found.value for _, found in self._sums()), key=Tensor.numel)
        return bool(torch.isfinite(least).all())

    @classmethod
    def restore(cls, state: dict[str, Tensor], tokens: int, device: torch.device) -> Self:
        """Return the accumulator whose `state()` and `tokens` these were."""
        width = next(iter(state.values())).shape[-1]
        found = cls(width, map(Stat, state), device)
        for name, value in found.state().items():
            value.copy_(state[name])
        found.tokens = tokens
        return found

    def _sums(self) -> Iterator[tuple[Stat, _Sum]]:
        yield from self._channels.items()
        yield from self._batches.items()


def _half(inputs: Tensor) -> Tensor:
    return inputs[: len(inputs) // 2]


def _add_gram(grams: Sequence[Tensor], x: Tensor) -> None:
    """Add x^T x to every matrix (n, n), given float32 (tokens, n): upper halves are computed, lower ones mirrored."""
    width, panel = x.shape[1], _PANEL if x.is_cpu else _WIDE_PANEL
    for start in range(0, width, panel):
        stop = min(start + panel, width)
        product = x[:, start:stop].T @ x[:, start:]
        for gram in grams:
            gram[start:stop, start:].add_(product)
            gram[stop:, start:stop] = gram[start:stop, stop:].T


@contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let float32 matrix products run at the speed of shorter formats where that changes nothing.

    Numbers that come from bfloat16 activations have at most 8 significant bits, those from float16 11, and TF32 keeps
    11: multiplying them so and summing in float32 is exact in the products. (Measured on 16,384 tokens of width 576 as
    bfloat16: 916 against 243 GFLOP/s on 2 cores, the same 9e-7 relative difference to float64.)

    Each backend's own setting: the one for all is an error to ask for once somebody has set a backend's.
    """
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    short = {torch.bfloat16: ("tf32", "bf16"), torch.float16: ("tf32", "ieee")}.get(dtype, ("ieee", "ieee"))
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, short, strict=True):
            backend.fp32_precision = precision
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = "none"  # what it was if it followed the setting for all
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision
