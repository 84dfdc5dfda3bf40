"""What a report is made of: frozen values, as read from the evaluation and cost files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zpruner.evaluate.bootstrap import Interval

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class VariantSpec:
    """Which variant a report shows: the labels that name its files, and its pattern as params.yaml writes it."""

    method: str
    sparsity: str
    pattern: str
    propagation: str = "dense"

    @property
    def name(self) -> str:
        """METHOD-SPARSITY, as in the stage names of dvc.yaml."""
        return f"{self.method}-{self.sparsity}"

    @property
    def is_nm(self) -> bool:
        """Whether the pattern is N:M."""
        return ":" in self.pattern

    @property
    def kind(self) -> str:
        """What the pattern is: `unstructured`, or N:M itself."""
        return self.pattern if self.is_nm else "unstructured"

    @property
    def share_text(self) -> str:
        """The share that the pattern removes: `50 %`."""
        kept, _, group = self.pattern.partition(":")
        return f"{(1 - int(kept) / int(group) if group else float(self.pattern)) * 100:.4g} %"

    @property
    def pattern_text(self) -> str:
        """The pattern for a reader: `50 %` or `2:4`."""
        return self.pattern if self.is_nm else f"{float(self.pattern) * 100:.4g} %"


@dataclass(frozen=True)
class Storage:
    """Bytes of a checkpoint's tensors: as stored, as bitmask and values, and N:M packed; None where not counted."""

    stored: int
    bitmask: int | None = None
    packed: int | None = None


@dataclass(frozen=True)
class Divergence:
    """Against the dense model over some windows: KL(dense || pruned) per token in nats, share of equal top tokens.

    Intervals are bootstraps over these windows, None where there are too few.
    """

    kl: float
    agreement: float
    windows: int
    kl_interval: Interval | None = None
    agreement_interval: Interval | None = None


@dataclass(frozen=True)
class Score:
    """One metric of one zero-shot task, with its standard error where the harness gives one, and the task's version."""

    task: str
    metric: str
    value: float
    stderr: float | None
    version: str
    samples: int | None
    num_fewshot: int | None


@dataclass(frozen=True)
class ZeroShot:
    """Scores, and the sparsity counted in the model in memory that got them."""

    sparsity: float
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Histogram:
    """Weights of one layer by the decimal logarithm of their score; one more edge than counts."""

    layer: str
    edges: tuple[float, ...]
    kept: tuple[float, ...]
    pruned: tuple[float, ...]


@dataclass(frozen=True)
class Speed:
    """Tokens per second of a pruned and the dense model, run in turns in one process."""

    pruned: float
    dense: float
    device: str
    threads: int
    tokens: int


@dataclass(frozen=True)
class Metrics:
    """The contents of a metrics file.

    Attributes:
        perplexity: exp of the mean window loss; NaN and infinity are possible.
        sparsity: achieved share of zeros over all prunable weights, in [0, 1].
        layer_error: mean over layers of ||(W - W') X||^2 / ||W X||^2.
        loss: mean negative log-likelihood per token, in nats.
        windows: number of evaluated windows.
        tokens: number of evaluated tokens.
        seqlen: tokens per window.
        storage: bytes, None where they were not counted.
        divergence: None where none was measured.
        zero_shot: None where no tasks were run.
    """

    perplexity: float
    sparsity: float
    layer_error: float
    loss: float
    windows: int
    tokens: int
    seqlen: int
    storage: Storage | None = None
    divergence: Divergence | None = None
    zero_shot: ZeroShot | None = None


@dataclass(frozen=True)
class Layer:
    """One pruned layer: its path, decoder block, kind (path inside the block), size and results."""

    layer: str
    block: int
    kind: str
    weights: int
    sparsity: float
    layer_error: float


@dataclass(frozen=True)
class Cost:
    """What one stage instance took: wall-clock seconds, peak memory in bytes, layers treated; speeds measured in it."""

    stage: str
    seconds: float
    peak_memory_bytes: int
    layers: int
    speed: Speed | None = None
    cached: bool | None = None
    """Whether the result came from a cache instead of being computed for this report; None where that is unknown."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model: metrics, per-window losses in nats, layers (none for dense) and provenance.

    `mask_sample` is from `zpruner.evaluate.sample_mask`, empty where there is none.
    """

    metrics: Metrics
    window_losses: tuple[float, ...]
    layers: tuple[Layer, ...] = ()
    layer_error_from: str = "gram"
    provenance: Mapping[str, Scalar] = field(default_factory=dict)
    mask_sample: str = ""
    histograms: tuple[Histogram, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One pruned model and what making and evaluating it cost."""

    spec: VariantSpec
    evaluation: Evaluation
    costs: tuple[Cost, ...] = ()

    @property
    def speed(self) -> Speed | None:
        """Speed of the variant and of dense, None where it was not measured."""
        return next((cost.speed for cost in self.costs if cost.speed is not None), None)

    @property
    def seconds(self) -> float:
        """Seconds of score, mask and apply; the score's cost counts in each variant that uses it."""
        return sum(cost.seconds for cost in self.costs if cost.stage != "evaluate")


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        folder: name of the data folder, for the paths that a reader is told.
        dense: the unpruned model.
        variants: in the order of the grid, extra ones last.
        shared_costs: of stages that run once for all variants (fetch, calibrate, gradients).
        model: settings and facts of the model, `source` first among them.
        calibration: settings of the calibration.
        evaluation: settings of the evaluation.
        methods: label -> settings, as in params.yaml.
        provenance: what the caller knows besides: git commit, library versions, ...
    """

    folder: str
    dense: Evaluation
    variants: tuple[Variant, ...]
    shared_costs: tuple[Cost, ...] = ()
    model: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)

    @property
    def method_names(self) -> tuple[str, ...]:
        """Method labels of the variants shown, in order."""
        return tuple(dict.fromkeys(v.spec.method for v in self.variants))

    @property
    def sparsity_names(self) -> tuple[str, ...]:
        """Sparsity labels of the variants shown, in order."""
        return tuple(dict.fromkeys(v.spec.sparsity for v in self.variants))
