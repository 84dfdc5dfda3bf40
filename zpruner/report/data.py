"""What a report is made of: frozen values, as read from the evaluation and cost files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zpruner.artifacts.results import Continuation, Cost, Details, Metrics, Packed, Speed


@dataclass(frozen=True)
class VariantSpec:
    """Which variant a report shows: the labels that name its files, and its pattern as params.yaml writes it."""

    method: str
    sparsity: str
    pattern: str

    @property
    def name(self) -> str:
        """METHOD-SPARSITY, as in the stage names of dvc.yaml."""
        return f"{self.method}-{self.sparsity}"

    @property
    def is_nm(self) -> bool:
        """Whether the pattern is N:M."""
        kept, _, group = self.pattern.partition(":")
        return kept.isdigit() and group.isdigit()

    @property
    def kind(self) -> str:
        """What the pattern is: `unstructured`, N:M itself, or what a prefix names, such as `neurons`."""
        return self.pattern if self.is_nm else self.pattern.rpartition(":")[0] or "unstructured"

    @property
    def removed(self) -> float:
        """The share of weights that the pattern removes."""
        kept, _, group = self.pattern.rpartition(":")
        return 1 - int(kept) / int(group) if self.is_nm else float(group)

    @property
    def share_text(self) -> str:
        """The share that the pattern removes: `50 %`."""
        return f"{self.removed * 100:.4g} %"

    @property
    def pattern_text(self) -> str:
        """The pattern for a reader: `50 %`, `2:4` or `neurons 25 %`."""
        if self.is_nm:
            return self.pattern
        return self.share_text if self.kind == "unstructured" else f"{self.kind} {self.share_text}"

    @property
    def title(self) -> str:
        """The pattern and its label: `50 % · s50`."""
        return f"{self.pattern_text} · {self.sparsity}"


@dataclass(frozen=True)
class Evaluation:
    """One evaluated model; the dense one has no layers."""

    metrics: Metrics
    details: Details


@dataclass(frozen=True)
class StageCost:
    """What one stage instance took, under the name that the report gives it."""

    stage: str
    cost: Cost
    cached: bool | None
    """Whether the result came from a cache instead of being computed for this report; None where that is unknown."""


@dataclass(frozen=True)
class Variant:
    """One pruned model and what making and evaluating it cost."""

    spec: VariantSpec
    evaluation: Evaluation
    costs: tuple[StageCost, ...] = ()

    @property
    def metrics(self) -> Metrics:
        """What the variant is worth."""
        return self.evaluation.metrics

    @property
    def details(self) -> Details:
        """What its metrics were made from."""
        return self.evaluation.details

    @property
    def speed(self) -> Speed | None:
        """Speed of the variant and of dense, None where it was not measured."""
        return next((found.cost.speed for found in self.costs if found.cost.speed is not None), None)

    @property
    def packed(self) -> Packed | None:
        """What packing the variant saved, None where it was not packed."""
        return next((found.cost.packed for found in self.costs if found.cost.packed is not None), None)

    @property
    def seconds(self) -> float:
        """Seconds of score, mask and apply; the score's cost counts in each variant that uses it."""
        return sum(found.cost.seconds for found in self.costs if found.stage not in ("evaluate", "pack"))


@dataclass(frozen=True)
class Spoken:
    """What a model says after the prompt; `variant` is None for the dense one."""

    name: str
    variant: Variant | None
    packed: bool
    said: Continuation


@dataclass(frozen=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        folder: name of the data folder, for the paths that a reader is told.
        dense: the unpruned model.
        variants: in the order of the grid.
        shared_costs: of stages that run once for all variants (fetch, calibrate, gradients).
        model: settings and facts of the model, `source` first among them.
        calibration: settings of the calibration.
        evaluation: settings of the evaluation.
        methods: label -> settings, as in params.yaml.
        provenance: what the caller knows besides: git commit, library versions, ...
        missing: names of variants that are listed and not evaluated yet.
    """

    folder: str
    dense: Evaluation
    variants: tuple[Variant, ...]
    shared_costs: tuple[StageCost, ...] = ()
    model: Mapping[str, object] = field(default_factory=dict)
    calibration: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)
    methods: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def method_names(self) -> tuple[str, ...]:
        """Method labels of the variants shown, in order."""
        return tuple(dict.fromkeys(v.spec.method for v in self.variants))

    @property
    def by_sparsity(self) -> dict[str, tuple[Variant, ...]]:
        """Sparsity label -> its variants, in order."""
        labels = dict.fromkeys(v.spec.sparsity for v in self.variants)
        return {label: tuple(v for v in self.variants if v.spec.sparsity == label) for label in labels}

    @property
    def spoken(self) -> tuple[Spoken, ...]:
        """What the models say after the prompt, those that were asked: dense, every variant, every packed one."""
        asked = (
            [Spoken("dense", None, False, self.dense.details.continuation)] if self.dense.details.continuation else []
        )
        for variant in self.variants:
            name, said = variant.spec.name, variant.details.continuation
            asked += [Spoken(name, variant, False, said)] if said else []
            said = variant.packed.continuation if variant.packed else None
            asked += [Spoken(f"{name}, packed", variant, True, said)] if said else []
        return tuple(asked)

    @property
    def named(self) -> dict[str, Evaluation]:
        """`dense` and every variant's name -> its evaluation."""
        return {"dense": self.dense, **{v.spec.name: v.evaluation for v in self.variants}}
