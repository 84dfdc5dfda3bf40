"""What was measured: one schema, written by the stages and read by everyone who shows or compares results.

A metric is one field of `Metrics` (or of a part of it). Annotated with `Shown`, it stands under its title in the
report's table, in `dvc metrics`, in the model card and in Prefect's table; nothing else names it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from zpruner.artifacts.result_file import Record, Result, Shown

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
Scalar = str | int | float | bool | None


class Interval(Record):
    """A 95 % confidence interval, both ends finite."""

    low: float
    high: float


class Storage(Record):
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


class Divergence(Record):
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


class ZeroShot(Record):
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
        flops: floating-point operations of a token's products with weights, zeros included; None where not counted.
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
    parameters: Annotated[
        Count | None, Shown("M parameters", "parameters", in_summary=False, where_it_differs=True)
    ] = None
    flops: Annotated[Count | None, Shown("GFLOP per token", "flops", in_summary=False, where_it_differs=True)] = None
    divergence: Divergence | None = None
    zero_shot: ZeroShot | None = None
    verdict: str | None = None


class Layer(Record):
    """One pruned layer: its path, decoder block, kind (path inside the block), size and results.

    `expert_tokens` is how many tokens an expert met that met too few for statistics of its own; `shrinkage`,
    `damping` and `share` are what these settings came to where they are `auto`.
    """

    layer: str
    block: Count
    kind: str
    weights: Count
    sparsity: Share
    layer_error: float
    expert_tokens: Count | None = None
    shrinkage: float | None = None
    damping: float | None = None
    share: float | None = None


CHOSEN = ("shrinkage", "damping", "share")
"""Settings that may choose themselves, layer by layer."""


class Histogram(Record):
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


class Sample(Record):
    """The end of the first window, token by token, and what the model ranks first at each of its places."""

    text: tuple[str, ...]
    choices: tuple[str, ...]


class Continuation(Record):
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


class Likeness(Record):
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
