"""From the folder `data/` to ReportData: exactly the variants listed, every file checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from zpruner.errors import ArtifactError, DuplicateNameError
from zpruner.report import _extra as extra
from zpruner.report._data import Cost, Evaluation, Layer, Metrics, ReportData, Scalar, Variant, VariantSpec
from zpruner.report._read import Record

_VARIANT_STAGES = ("score", "mask", "apply")
_SHARED_STAGES = ("fetch", "calibrate", "gradients")
_ESTIMATORS = ("gram", "diagonal")
_SAME_METRICS = ("windows", "tokens", "seqlen")
_SAME_PROVENANCE = ("evaluation_hash", "evaluation_stride")


def load(
    folder: Path,
    methods: Mapping[str, Mapping[str, object]],
    sparsities: Mapping[str, str],
    *,
    propagation: str = "dense",
    extra: Sequence[VariantSpec] = (),
    model: Mapping[str, object],
    calibration: Mapping[str, object],
    evaluation: Mapping[str, object] | None = None,
    provenance: Mapping[str, object],
    computed: Collection[str] | None = None,
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
        evaluation: settings to show about the evaluation.
        provenance: what else to show: git commit, library versions, hashes.
        computed: which files of `costs/` were written for this report; the others count as taken from a cache. None:
            unknown.

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
    costs = _Costs(folder / "costs", computed)
    variants = tuple(_variant(folder, spec, dense, costs) for spec in specs)
    return ReportData(
        folder=folder.name,
        dense=dense,
        variants=variants,
        shared_costs=costs.shared(),
        model=model,
        calibration=calibration,
        evaluation=evaluation or {},
        methods=methods,
        provenance=provenance,
    )


def _variant(folder: Path, spec: VariantSpec, dense: Evaluation, costs: _Costs) -> Variant:
    command = f"dvc repro evaluate@{spec.name}"
    root = folder / "evaluation" / spec.method
    evaluation = _evaluation(root, spec.sparsity, command)
    compared = [(key, getattr(evaluation.metrics, key), getattr(dense.metrics, key)) for key in _SAME_METRICS]
    compared += [(key, evaluation.provenance.get(key), dense.provenance.get(key)) for key in _SAME_PROVENANCE]
    for key, got, expected in compared:
        if got != expected:
            ending = "json" if key in _SAME_METRICS else "layers.json"
            raise ArtifactError(
                str(root / f"{spec.sparsity}.{ending}"),
                f"{key} {got}",
                f"{expected}, as for the dense model: other text cannot be compared",
                f"Run `{command}`.",
            )
    return Variant(spec, evaluation, costs.of(spec, command))


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


class _Costs:
    """The cost files below a folder; `computed` as in `load`."""

    def __init__(self, root: Path, computed: Collection[str] | None) -> None:
        self._root, self._computed = root, computed

    def of(self, spec: VariantSpec, command: str) -> tuple[Cost, ...]:
        """Return the costs of a variant's stages."""
        # A solver is scored once per pattern, other methods once for all: the more special file wins.
        found = []
        for stage in _VARIANT_STAGES:
            folder = self._root / stage
            special, general = folder / spec.method / f"{spec.sparsity}.json", folder / f"{spec.method}.json"
            path = general if general.is_file() and not special.is_file() else special
            found.append(self._read(path, command))
        evaluate = self._root / "evaluate" / spec.method / f"{spec.sparsity}.json"
        return (*found, self._read(evaluate, command)) if evaluate.is_file() else tuple(found)

    def shared(self) -> tuple[Cost, ...]:
        """Return the costs of the stages that run once for all variants."""
        root = self._root
        paths = [p for s in _SHARED_STAGES for p in (root / f"{s}.json", *sorted((root / s).glob("*.json")))]
        costs = [
            replace(cost, stage=cost.stage if path.parent == root else f"{cost.stage} {path.stem}")
            for path in paths
            if path.is_file()
            for cost in [self._read(path, "dvc repro")]
        ]
        return tuple(cost for cost in costs if cost.seconds)  # gradients that nothing needed took none

    def _read(self, path: Path, command: str) -> Cost:
        record = Record.read(path, command)
        return Cost(
            stage=record.text("stage"),
            seconds=record.number("seconds"),
            peak_memory_bytes=record.count("peak_memory_bytes"),
            layers=record.count("layers"),
            speed=extra.speed(record),
            cached=None if self._computed is None else str(path.relative_to(self._root)) not in self._computed,
        )
