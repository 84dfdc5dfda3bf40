"""What a report is made of: frozen values, as read from the evaluation and cost files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zpruner.artifacts.costs import Cost, Packed, Speed, SpeedBesideDense
from zpruner.artifacts.results import Continuation, Details, Metrics
from zpruner.patterns import Pattern, StructuredPattern, parse_pattern


@dataclass(frozen=True)
class VariantSpec:
    """Which variant a report shows: the labels that name its files, and its pattern as params.yaml writes it.

    `gathers` says that the method permutes channels: N:M holds in an order of inputs that the checkpoint does not have.
    """

    method: str
    sparsity: str
    pattern: str
    gathers: bool = False

    @property
    def name(self) -> str:
        """METHOD-SPARSITY, as in the stage names of dvc.yaml."""
        return f"{self.method}-{self.sparsity}"

    @property
    def is_nm(self) -> bool:
        """Whether the pattern is N:M."""
        return not isinstance(self._parsed, StructuredPattern) and self._parsed.is_nm

    @property
    def kind(self) -> str:
        """What the pattern is: `unstructured`, N:M itself, or the structures that go, such as `neurons, groups`."""
        if isinstance(self._parsed, StructuredPattern):
            return ", ".join(self._parsed)
        return self.pattern if self.is_nm else "unstructured"

    @property
    def removed(self) -> float:
        """The share that the pattern removes: of weights, or of structures the largest."""
        found = self._parsed
        return max(found.share(kind) for kind in found) if isinstance(found, StructuredPattern) else found.sparsity

    @property
    def share_text(self) -> str:
        """The share that the pattern removes: `50 %`; of structures one for each kind."""
        found = self._parsed
        shares = [found.share(k) for k in found] if isinstance(found, StructuredPattern) else [found.sparsity]
        return ", ".join(f"{share * 100:.4g} %" for share in shares)

    @property
    def pattern_text(self) -> str:
        """The pattern for a reader: `50 %`, `2:4`, `2:4 of gathered inputs` or `neurons 25 %, groups 33.33 %`."""
        found = self._parsed
        if isinstance(found, StructuredPattern):
            return ", ".join(f"{kind} {found.share(kind) * 100:.4g} %" for kind in found)
        if not self.is_nm:
            return self.share_text
        return f"{self.pattern} of gathered inputs" if self.gathers else self.pattern

    @property
    def _parsed(self) -> Pattern:
        return parse_pattern(self.pattern)

    @property
    def title(self) -> str:
        """The pattern and its label: `50 % · s50`."""
        return f"{self.pattern_text} · {self.sparsity}"


@dataclass(frozen=True)
class Measured:
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
    evaluation: Measured
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
    def beside_dense(self) -> SpeedBesideDense | None:
        """Speed beside the dense model, of a variant that lost structures; None where it was not measured."""
        return next((found.cost.beside_dense for found in self.costs if found.cost.beside_dense is not None), None)

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
    dense: Measured
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

    def bits(self, method: str) -> int | None:
        """Return the bits of a value where a method quantises what stays."""
        match self.methods[method].get("quantize"):
            case {"settings": {"bits": int(bits)}}:
                return bits
        return None

    def is_dense(self, spec: VariantSpec) -> bool:
        """Return whether a variant neither removes nor quantises anything: it is the dense model again."""
        return not spec.removed and self.bits(spec.method) is None

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
    def named(self) -> dict[str, Measured]:
        """`dense` and every variant's name -> its evaluation."""
        return {"dense": self.dense, **{v.spec.name: v.evaluation for v in self.variants}}
