"""An offer: what a model predicts, and what that costs in bytes and time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zpruner.artifacts.results import Interval


@dataclass(frozen=True)
class Decode:
    """The measured speed of generating token after token, batch 1.

    Attributes:
        tokens_per_second: median of the rounds.
        over_dense: times the dense weights multiplied by torch: median of pairs measured in turns in one process.
        over_control: times the same weights with their zeros multiplied by the same kernels; None: there is no such
            control.
    """

    tokens_per_second: float
    over_dense: float
    over_control: float | None = None


@dataclass(frozen=True)
class Offer:
    """A model as it can be shipped.

    Attributes:
        label: names it for a reader: `wanda 50 %`.
        variant: METHOD-SPARSITY, or `dense`.
        method: its label in params.yaml; empty for the dense model.
        pattern: of what was removed, for a reader; empty where nothing was.
        sparsity: the share of prunable weights that are gone.
        bits: of a quantised value; None: values are as the dense model's.
        form: how it is stored: `plain`, or `packed` (without its zeros).
        computed: whether its bytes follow from the format's arithmetic; else they were counted on a packed checkpoint.
        perplexity: finite.
        interval: of the perplexity; None where windows are too few.
        losses: of every evaluated window, the same windows for all offers, in nats.
        disk: bytes of its weights on disk.
        read: bytes of weights that computing one token reads; None where that is unknown.
        decode: None where it was not measured.
        prefill: speed of many tokens at once, times dense; None where it was not measured.
        predicts: whether it still does (zpruner.evaluate.verdict): nobody ships what does not.
        tasks: `TASK METRIC` -> score and standard error (None where there is none), where tasks were run.
    """

    label: str
    variant: str
    method: str
    pattern: str
    sparsity: float
    bits: int | None
    form: str
    computed: bool
    perplexity: float
    interval: Interval | None
    losses: tuple[float, ...]
    disk: int
    read: int | None = None
    decode: Decode | None = None
    prefill: float | None = None
    predicts: bool = True
    tasks: Mapping[str, tuple[float, float | None]] = field(default_factory=dict)

    @property
    def pruned(self) -> bool:
        """Whether anything was removed."""
        return bool(self.pattern)

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense model itself."""
        return not self.pruned and self.bits is None

    @property
    def kind(self) -> str:
        """What was done to the model: `dense`, `pruned`, `int4`, `pruned, int4`."""
        parts = [*(["pruned"] if self.pruned else []), *([] if self.bits is None else [f"int{self.bits}"])]
        return ", ".join(parts) or "dense"
