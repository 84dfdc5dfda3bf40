"""What a stage instance took, and what a variant saves: times, memory, bytes and speeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from zpruner.artifacts.result_file import Record, Result
from zpruner.artifacts.results import Continuation, Count

Seconds = Annotated[float, Field(ge=0.0)]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a pruned and the dense model, run in turns in one process."""

    pruned: float
    dense: float
    device: str
    threads: int
    tokens: int


class PackedSpeed(Record):
    """Tokens a second of a packed variant, of the same weights with their zeros by the same code, and by torch.

    All in turns in one process: the numbers of one round belong together.
    """

    kernels: str
    threads: Count
    decode: tuple[float, ...]
    control_decode: tuple[float, ...]
    torch_decode: tuple[float, ...]
    prefill: tuple[float, ...]
    control_prefill: tuple[float, ...]
    torch_prefill: tuple[float, ...]

    @property
    def over_control(self) -> float:
        """Decode speed, times that of the same weights with their zeros by the same code."""
        return median_ratio(self.decode, self.control_decode)

    @property
    def over_torch(self) -> float:
        """Decode speed, times that of the same weights with their zeros by torch."""
        return median_ratio(self.decode, self.torch_decode)

    @property
    def prefill_over_torch(self) -> float:
        """Prefill speed, times torch's."""
        return median_ratio(self.prefill, self.torch_prefill)


class SpeedBesideDense(Record):
    """Tokens a second of a variant and of the dense model by torch, in turns in one process."""

    threads: Count
    decode: tuple[float, ...]
    dense_decode: tuple[float, ...]
    prefill: tuple[float, ...]
    dense_prefill: tuple[float, ...]

    @property
    def decode_over_dense(self) -> float:
        """Decode speed, times the dense model's."""
        return median_ratio(self.decode, self.dense_decode)

    @property
    def prefill_over_dense(self) -> float:
        """Prefill speed, times the dense model's."""
        return median_ratio(self.prefill, self.dense_prefill)


def median_ratio(first: Iterable[float], second: Iterable[float]) -> float:
    """Return the median over rounds of first / second, measured in turns."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


class Packed(Record):
    """A packed variant.

    Attributes:
        dense: bytes of its weights with their zeros.
        packed: bytes of its weights without them.
        speed: None where it was not measured.
        continuation: what the packed checkpoint says, once loaded; None as in `Details`.
    """

    dense: Count
    packed: Count
    speed: PackedSpeed | None = None
    continuation: Continuation | None = None


class Cost(Result):
    """data/costs/STAGE/...json: what one stage instance took.

    Attributes:
        stage: its name.
        seconds: wall-clock time of the work, start-up apart.
        peak_memory_bytes: resident memory of the process at its largest.
        layers: layers treated.
        windows: windows treated.
        evaluations: formulas evaluated by a search.
        streamed: whether weights were read block by block.
        source: SHA-256 of the local file or folder that was fetched; empty for what came from elsewhere.
        batch_divisor: what batch sizes were divided by after memory had run out.
        packed: what packing the variant saved.
        beside_dense: speed of a variant that lost structures.
        tokens_per_second: of the variant; the fields below say of what, beside which dense model, and on what.
    """

    anchor = "costs"

    stage: str
    seconds: Seconds
    peak_memory_bytes: Count
    layers: Count = 0
    windows: Count | None = None
    evaluations: Count | None = None
    streamed: bool | None = None
    source: str | None = None
    batch_divisor: Count | None = None
    packed: Packed | None = None
    beside_dense: SpeedBesideDense | None = None
    tokens_per_second: float | None = None
    dense_tokens_per_second: float | None = None
    speed_tokens: Count | None = None
    speed_seqlen: Count | None = None
    threads: Count | None = None
    device: str | None = None

    @property
    def speed(self) -> Speed | None:
        """The speeds, None where they were not measured."""
        if (
            self.tokens_per_second is None
            or self.dense_tokens_per_second is None
            or self.speed_tokens is None
            or self.threads is None
            or self.device is None
        ):
            return None
        return Speed(self.tokens_per_second, self.dense_tokens_per_second, self.device, self.threads, self.speed_tokens)
