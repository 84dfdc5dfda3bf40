"""Settings and provenance: what all results share, and what each variant has of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zpruner.report import _format as fmt
from zpruner.report.data import ReportData

IN_MEMORY = "made in memory"
"""What the provenance of a variant without a checkpoint says under `weights`."""


@dataclass(frozen=True)
class VariantFacts:
    """Where a variant lies, how to make it again, and the provenance that others do not share."""

    name: str
    checkpoint: str
    command: str
    own: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facts:
    """Titled groups of (name, value), then the variants. Empty groups are left out."""

    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    variants: tuple[VariantFacts, ...]


def title(data: ReportData) -> str:
    """Return the model's `name`, else the last part of its `source`."""
    name = data.model.get("name") or str(data.model.get("source") or "").rstrip("/").rsplit("/", 1)[-1]
    return str(name or "the model")


def collect(data: ReportData) -> Facts:
    """Sort everything known about how the numbers came about."""
    evaluations = (data.dense, *(v.evaluation for v in data.variants))
    provenances = [fmt.flat(evaluation.details.provenance) for evaluation in evaluations]
    shared = _shared(provenances[1:] or provenances)
    shared = {k: v for k, v in shared.items() if provenances[0].get(k, v) == v}
    metrics = data.dense.metrics
    evaluation = {
        "windows": fmt.count(metrics.windows),
        "tokens per window": fmt.count(metrics.seqlen),
        "tokens": fmt.count(metrics.tokens),
        **fmt.flat(data.evaluation),
    }
    methods = {
        name: ", ".join(f"{k}: {v}" for k, v in fmt.flat(settings).items()) or "defaults"
        for name, settings in data.methods.items()
    }
    groups = {
        "Model": fmt.flat(data.model),
        "Calibration": fmt.flat(data.calibration),
        "Evaluation": evaluation,
        "Methods": methods,
        "Provenance": shared | fmt.flat(data.provenance),
    }
    places = [("dense", "models/dense", "evaluate_dense")]
    places += [
        (v.spec.name, f"pruned/{v.spec.method}/{v.spec.sparsity}", f"evaluate@{v.spec.name}") for v in data.variants
    ]
    variants = tuple(
        VariantFacts(
            name,
            "none: made in memory" if own.get("weights") == IN_MEMORY else f"{data.folder}/{path}",
            f"dvc repro {stage}",
            tuple((k, value) for k, value in own.items() if k not in shared),
        )
        for (name, path, stage), own in zip(places, provenances, strict=True)
    )
    return Facts(tuple((name, tuple(g.items())) for name, g in groups.items() if g), variants)


def _shared(provenances: Sequence[Mapping[str, str]]) -> dict[str, str]:
    first, *others = provenances
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def estimator_note(data: ReportData) -> str:
    """Return the sentence that says how layer errors were measured, empty without layers."""
    kinds = {v.evaluation.details.layer_error_from for v in data.variants if v.evaluation.details.layers}
    if not kinds:
        return ""
    if kinds == {"gram"}:
        return (
            "It is computed from the Gram matrix of the inputs that calibration saw in the unpruned model, so it is "
            "exact for them."
        )
    if kinds == {"diagonal"}:
        return (
            "Here it is estimated from the diagonal of the Gram matrix alone, "
            "which takes the inputs of a layer as uncorrelated."
        )
    names = ", ".join(v.spec.name for v in data.variants if v.evaluation.details.layer_error_from == "diagonal")
    return (
        "It is computed from the Gram matrix of the inputs that calibration saw in the unpruned model, except for "
        f"{names}: there from its diagonal alone, so do not compare those with the others."
    )
