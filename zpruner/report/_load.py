"""From the folder `data/` to ReportData: exactly the variants listed, every file checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zpruner.errors import ArtifactError, DuplicateNameError
from zpruner.report import _extra as extra
from zpruner.report._data import Cost, Evaluation, Layer, Metrics, ReportData, Scalar, Variant, VariantSpec
from zpruner.report._read import Record

_VARIANT_STAGES = ("score", "mask", "apply")
_SHARED_STAGES = ("fetch", "calibrate")
_ESTIMATORS = ("gram", "diagonal")


def load(
    folder: Path,
    methods: Mapping[str, Mapping[str, object]],
    sparsities: Mapping[str, str],
    *,
    propagation: str = "dense",
    extra: Sequence[VariantSpec] = (),
    model: Mapping[str, object],
    calibration: Mapping[str, object],
    provenance: Mapping[str, object],
) -> ReportData:
    """Read the results of every method at every sparsity, and of the extra variants; other files are not looked at.

    Args:
        folder: the data folder, with `evaluation/` and `costs/` inside.
        methods: label -> settings, as in params.yaml.
        sparsities: label -> pattern, `"0.5"` or `"2:4"`.
        propagation: of the grid's calibration statistics, `dense` or `pruned`.
        extra: variants outside the grid.
        model: settings and facts to show about the model; `source` makes the title.
        calibration: settings to show about the calibration.
        provenance: what else to show: git commit, library versions, hashes.

    Raises:
        ArtifactError: a file is missing, malformed, or belongs to another evaluation; names it and the command.
        DuplicateNameError: an extra variant carries the labels of another one.
    """
    specs = [VariantSpec(m, s, str(p), propagation) for m in methods for s, p in sparsities.items()]
    specs += extra
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise DuplicateNameError(
                "variants of the report",
                f"'{name}' twice",
                "one variant per method and sparsity",
                "Remove it from the extra variants in params.yaml, or give it another label.",
            )
    dense = _evaluation(folder / "evaluation", "dense", "dvc repro evaluate_dense")
    variants = tuple(_variant(folder, spec, dense) for spec in specs)
    return ReportData(
        folder=folder.name,
        dense=dense,
        variants=variants,
        shared_costs=_shared_costs(folder / "costs"),
        model=model,
        calibration=calibration,
        methods=methods,
        provenance=provenance,
    )


def _variant(folder: Path, spec: VariantSpec, dense: Evaluation) -> Variant:
    command = f"dvc repro evaluate@{spec.name}"
    root = folder / "evaluation" / spec.method
    evaluation = _evaluation(root, spec.sparsity, command)
    for key in ("windows", "tokens", "seqlen"):
        got, expected = getattr(evaluation.metrics, key), getattr(dense.metrics, key)
        if got != expected:
            raise ArtifactError(
                str(root / f"{spec.sparsity}.json"),
                f"{key} {got}",
                f"{expected}, as for the dense model: other text cannot be compared",
                f"Run `{command}`.",
            )
    return Variant(spec, evaluation, _variant_costs(folder / "costs", spec, command))


def _evaluation(root: Path, name: str, command: str) -> Evaluation:
    metrics = _metrics(Record.read(root / f"{name}.json", command))
    details = Record.read(root / f"{name}.layers.json", command)
    losses = details.numbers("window_losses")
    if len(losses) != metrics.windows:
        raise ArtifactError(
            str(details.path),
            f"{len(losses)} window losses",
            f"{metrics.windows}, as {name}.json counts windows",
            f"Run `{command}`.",
        )
    layers = tuple(_layer(record) for record in details.records("layers"))
    estimator = details.text("layer_error_from") if layers else "gram"
    if estimator not in _ESTIMATORS:
        raise details.wrong("layer_error_from", " or ".join(_ESTIMATORS))
    provenance: Mapping[str, Scalar] = details.scalars("provenance")
    sample = details.text("mask_sample") if details.has("mask_sample") else ""
    return Evaluation(metrics, losses, layers, estimator, provenance, sample, extra.histograms(details))


def _metrics(record: Record) -> Metrics:
    return Metrics(
        perplexity=record.number("perplexity"),
        sparsity=record.share("sparsity"),
        layer_error=record.number("layer_error"),
        loss=record.number("loss"),
        windows=record.count("windows"),
        tokens=record.count("tokens"),
        seqlen=record.count("seqlen"),
        storage=extra.storage(record),
        divergence=extra.divergence(record),
        zero_shot=extra.zero_shot(record),
    )


def _layer(record: Record) -> Layer:
    return Layer(
        layer=record.text("layer"),
        block=record.count("block"),
        kind=record.text("kind"),
        weights=record.count("weights"),
        sparsity=record.share("sparsity"),
        layer_error=record.number("layer_error"),
    )


def _variant_costs(root: Path, spec: VariantSpec, command: str) -> tuple[Cost, ...]:
    # A solver is scored once per pattern, other methods once for all: the more special file wins.
    found = []
    for stage in _VARIANT_STAGES:
        special, general = (
            root / stage / spec.method / f"{spec.sparsity}.json",
            root / stage / f"{spec.method}.json",
        )
        path = general if general.is_file() and not special.is_file() else special
        found.append(_cost(Record.read(path, command)))
    evaluate = root / "evaluate" / spec.method / f"{spec.sparsity}.json"
    return (*found, _cost(Record.read(evaluate, command))) if evaluate.is_file() else tuple(found)


def _shared_costs(root: Path) -> tuple[Cost, ...]:
    paths = [p for s in _SHARED_STAGES for p in (root / f"{s}.json", *sorted((root / s).glob("*.json")))]
    return tuple(_cost(Record.read(path, "dvc repro")) for path in paths if path.is_file())


def _cost(record: Record) -> Cost:
    return Cost(
        stage=record.text("stage"),
        seconds=record.number("seconds"),
        peak_memory_bytes=record.count("peak_memory_bytes"),
        layers=record.count("layers"),
        speed=extra.speed(record),
    )
