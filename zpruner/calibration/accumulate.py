"""Streaming sums over the tokens that one linear layer reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor

from zpruner.types import at_a_time

_CHUNK = 4096
"""Tokens converted to float32 at a time: bounds the temporary memory, and what units that cut sums off, as those of
GPUs may, can lose."""
_IN_CACHE = 1 << 19
"""Numbers of which the sums of channels are taken at a time: temporaries that fit the cache are twice as fast."""
_PANEL, _WIDE_PANEL = 192, 4096
"""Rows of a Gram matrix computed together on the host and on an accelerator: wide enough for full speed, narrow enough
to leave its lower half out."""


class InputAccumulator:
    """Sums over tokens of one captured input: float64 vectors, a float32 Gram matrix, float32 maxima.

    Args:
        width: number of input channels.
        gram: whether X X^T is summed too.
        device: where the sums lie.
        cross: whether X_dense X^T is summed too; `add` then needs both inputs.
    """

    def __init__(self, width: int, gram: bool, device: torch.device, cross: bool = False) -> None:
        self.tokens = 0
        self.sq_sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.abs_sum = torch.zeros(width, dtype=torch.float64, device=device)
        self.max_abs = torch.zeros(width, dtype=torch.float32, device=device)
        self.gram = torch.zeros(width, width, dtype=torch.float32, device=device) if gram else None
        self.cross = torch.zeros(width, width, dtype=torch.float32, device=device) if cross else None

    def add(self, inputs: Tensor, dense: Tensor | None = None) -> None:
        """Add the tokens of `inputs`, float (..., in), and with `cross` those of `dense`, the same ones unpruned."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        if self.cross is not None and dense is not None:
            with _exact_products(inputs.dtype):
                others = dense.detach().reshape(rows.shape)
                for mine, other in zip(rows.split(_CHUNK), others.split(_CHUNK), strict=True):
                    self.cross.addmm_(other.float().T, mine.float())
        for part in rows.split(max(1, at_a_time(rows.device, _IN_CACHE) // rows.shape[1])):
            size = part.abs().float()
            # sum() adds pairwise: 2e-7 from float64, where vector_norm is up to 1e-4 off; it is faster, too.
            self.abs_sum += size.sum(0)
            torch.maximum(self.max_abs, size.amax(0), out=self.max_abs)
            self.sq_sum += size.square_().sum(0)
        if self.gram is not None:
            with _exact_products(inputs.dtype):
                for chunk in rows.split(_CHUNK):
                    _add_gram(self.gram, chunk.float())
        self.tokens += rows.shape[0]

    def empty_like(self) -> Self:
        """Return an accumulator of the same width and kinds of sums that has seen no token."""
        return type(self)(self.sq_sum.shape[0], self.gram is not None, self.sq_sum.device, self.cross is not None)

    def blend(self, other: Self, weight: float) -> None:
        """Add what `other` has seen, each of its tokens counted `weight` times; maxima are joined."""
        for name, value in self.state().items():
            if name == "max_abs":
                torch.maximum(value, other.max_abs, out=value)
            else:
                value.add_(other.state()[name], alpha=weight)
        self.tokens += round(weight * other.tokens)

    def state(self) -> dict[str, Tensor]:
        """Return the sums as tensors, for a snapshot or an artifact; the number of tokens is not among them."""
        sums = {"sq_sum": self.sq_sum, "abs_sum": self.abs_sum, "max_abs": self.max_abs}
        if self.gram is not None:
            sums["gram"] = self.gram
        if self.cross is not None:
            sums["cross"] = self.cross
        return sums

    @classmethod
    def restore(cls, state: dict[str, Tensor], tokens: int, device: torch.device) -> Self:
        """Return the accumulator whose `state()` and `tokens` these were."""
        found = cls(state["sq_sum"].shape[0], "gram" in state, device, "cross" in state)
        for name, value in found.state().items():
            value.copy_(state[name])
        found.tokens = tokens
        return found


def _add_gram(gram: Tensor, x: Tensor) -> None:
    """Add x^T x to `gram` (n, n), given float32 (tokens, n): the upper half is computed, the lower one mirrored."""
    width, panel = gram.shape[0], _PANEL if gram.is_cpu else _WIDE_PANEL
    for start in range(0, width, panel):
        stop = min(start + panel, width)
        gram[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
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
