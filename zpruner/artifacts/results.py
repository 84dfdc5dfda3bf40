"""What was measured: one schema, written by the stages and read by everyone who shows or compares results.

A metric is one field of `Metrics` (or of a part of it). Annotated with `Shown`, it stands under its title in the
report's table, in `dvc metrics`, in the model card and in Prefect's table; nothing else names it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from zpruner.artifacts.result_file import Part, Result, Shown

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0)]
Scalar = str | int | float | bool | None


class Interval(Part):
    """A 95 % confidence interval, both ends finite."""

    low: float
    high: float


class Storage(Part):
    """Bytes of a checkpoint's tensors, None where not counted.

    Attributes:
        stored: as they are.
        bitmask: as the stage `pack` stores them: bitmask and kept values, as integers where they are quantised.
        packed: as N:M formats store them.
        read: those of `stored` that computing one token reads: all but tables of which it takes a row.
    """

    stored: Annotated[Count, Shown("MB", "bytes")]
    bitmask: Count | None = None
    packed: Count | None = None
    read: Count | None = None


class Divergence(Part):
    """Against the dense model over some windows: KL(dense || pruned) per token in nats, share of equal top tokens."""

    kl: Annotated[float, Shown("KL from dense per token, nats", "error", dense=0.0, in_table=False, in_summary=False)]
    kl_interval: Interval | None = None
    top1_agreement: Annotated[
        Share, Shown("same top token as dense", "share", dense=1.0, in_table=False, in_summary=False)
    ]
    top1_agreement_interval: Interval | None = None
    windows: Count


class Task(BaseModel):
    """One zero-shot task: metric -> value and METRIC_stderr -> standard error, as lm-evaluation-harness names them."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, float]

    version: str | int | float = ""
    samples: Count | None = None
    num_fewshot: Count | None = None

    @property
    def scores(self) -> dict[str, tuple[float, float | None]]:
        """Metric -> value and standard error, None where the harness gives none; in alphabetical order."""
        found = self.__pydantic_extra__
        names = sorted(name for name in found if "_stderr" not in name)
        return {name: (found[name], found.get(f"{name}_stderr")) for name in names}


class ZeroShot(Part):
    """Tasks, and the sparsity counted in the model in memory that they were run on."""

    sparsity: Share
    tasks: dict[str, Task]


class Metrics(Result):
    """data/evaluation/METHOD/SPARSITY.json: what a variant (or the dense model) is worth.

    Attributes:
        perplexity: exp of the mean window loss; NaN and infinity are possible.
        perplexity_interval: over windows; None where they are too few.
        loss: mean negative log-likelihood per token, in nats.
        sparsity: achieved share of zeros over all prunable weights.
        layer_error: mean over layers of ||(W - W') X||^2 / ||W X||^2.
        windows: number of evaluated windows.
        tokens: number of evaluated tokens.
        seqlen: tokens per window.
        bytes: what the model takes.
        parameters: of the model, zeros included; None where they were not counted.
        divergence: None where none was measured.
        zero_shot: None where no tasks were run.
        verdict: a sentence where the variant no longer predicts; None otherwise.
    """

    anchor = "evaluation"

    perplexity: Annotated[float, Shown("perplexity", "perplexity", "{windows} windows of {seqlen} tokens")]
    perplexity_interval: Interval | None = None
    loss: float
    layer_error: Annotated[float, Shown("layer error", "error", in_summary=False)]
    sparsity: Annotated[Share, Shown("sparsity", "share")]
    windows: Count
    tokens: Count
    seqlen: Count
    bytes: Storage
    parameters: Count | None = None
    divergence: Divergence | None = None
    zero_shot: ZeroShot | None = None
    verdict: str | None = None


class Layer(Part):
    """One pruned layer: its path, decoder block, kind (path inside the block), size and results.

    `expert_tokens` is how many tokens an expert met that met too few for statistics of its own.
    """

    layer: str
    block: Count
    kind: str
    weights: Count
    sparsity: Share
    layer_error: float
    expert_tokens: Count | None = None


class Histogram(Part):
    """Weights of one layer by the decimal logarithm of their score; one more edge than counts."""

    layer: str
    edges: tuple[float, ...]
    kept: tuple[Count, ...]
    pruned: tuple[Count, ...]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if not len(self.kept) == len(self.pruned) == len(self.edges) - 1:
            raise ValueError(f"{len(self.kept) + 1} edges, one more than counts")
        return self


class Sample(Part):
    """The end of the first window, token by token, and what the model ranks first at each of its places."""

    text: tuple[str, ...]
    choices: tuple[str, ...]


class Continuation(Part):
    """A prompt, and what the model says after it: the most likely token at each step."""

    prompt: str
    text: str


class Details(Result):
    """data/evaluation/METHOD/SPARSITY.layers.json: what the metrics were made from.

    Attributes:
        layers: of the variant, none for the dense model.
        layer_error_from: `gram` (exact) or `diagonal` (inputs taken as uncorrelated).
        window_losses: mean negative log-likelihood of each window, in nats.
        window_kl: KL divergence from the dense model of each compared window.
        window_agreement: share of equal top tokens of each compared window.
        mask_sample: of `zpruner.evaluate.sample_bits`, empty where there is no mask.
        score_histograms: of the first and last layer of the middle block.
        sample: what the model would say, None where it has no tokenizer.
        continuation: of the prompt that params.yaml gives; None without one or without a tokenizer, and where weights
            are read block by block.
        provenance: of the checkpoint and the text.
    """

    anchor = "evaluation"

    layers: tuple[Layer, ...]
    layer_error_from: Literal["gram", "diagonal"]
    window_losses: tuple[float, ...]
    window_kl: tuple[float, ...] = ()
    window_agreement: tuple[float, ...] = ()
    mask_sample: str = ""
    score_histograms: tuple[Histogram, ...] = ()
    sample: Sample | None = None
    continuation: Continuation | None = None
    provenance: dict[str, Scalar]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a pruned and the dense model, run in turns in one process."""

    pruned: float
    dense: float
    device: str
    threads: int
    tokens: int


class PackedSpeed(Part):
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


def median_ratio(first: Iterable[float], second: Iterable[float]) -> float:
    """Return the median over rounds of first / second, measured in turns."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


class Packed(Part):
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


class Likeness(Part):
    """A formula among a search's best: its fitness (log perplexity) and rank correlations with known methods."""

    formula: str
    fitness: float
    correlations: dict[str, float] = Field(
        validation_alias=AliasChoices("with", "correlations"), serialization_alias="with"
    )


class FoundFormula(Result):
    """data/search/found.json: the best formula of a search, and what it is compared with.

    Attributes:
        formula: the formula found.
        fitness: its log perplexity on all windows.
        evaluations: how many evaluations the search took.
        stopped: by which limit it ended.
        known: method -> fitness on all windows, None where it is not finite.
        correlations: the best formulas.
        settings: of the search.
        model: name of the dense model.
    """

    formula: str
    fitness: float
    evaluations: Count
    stopped: str
    known: dict[str, float | None]
    correlations: tuple[Likeness, ...]
    settings: dict[str, Any]
    model: str
