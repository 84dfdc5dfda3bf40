"""From the folder `data/` to ReportData: exactly the variants listed, every file checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from zpruner.artifacts.costs import Cost
from zpruner.artifacts.layout import COSTS, EVALUATION, Layout
from zpruner.artifacts.results import Details, Metrics
from zpruner.errors import ArtifactError
from zpruner.patterns import Permutation
from zpruner.report.data import Measured, ReportData, StageCost, Variant, VariantSpec
from zpruner.settings.mixture import described
from zpruner.settings.params import Params

_VARIANT_STAGES = ("score", "mask", "apply")
_SHARED_STAGES = ("fetch", "generate", "calibrate", "gradients")
_SAME_METRICS = ("windows", "tokens", "seqlen")
_SAME_PROVENANCE = ("evaluation_hash", "evaluation_stride")


def load(
    folder: Path,
    methods: Mapping[str, Mapping[str, object]],
    sparsities: Mapping[str, str],
    *,
    model: Mapping[str, object],
    calibration: Mapping[str, object],
    evaluation: Mapping[str, object] | None = None,
    provenance: Mapping[str, object],
    computed: Collection[str] | None = None,
    partial: bool = False,
) -> ReportData:
    """Read the results of every method at every sparsity; other files are not looked at.

    Args:
        folder: the data folder, with `evaluation/` and `costs/` inside.
        methods: label -> settings, as in params.yaml.
        sparsities: label -> pattern, `"0.5"` or `"2:4"`.
        model: settings and facts to show about the model; `source` makes the title.
        calibration: settings to show about the calibration.
        evaluation: settings to show about the evaluation.
        provenance: what else to show: git commit, library versions, hashes.
        computed: which files of `costs/` were written for this report; the others count as taken from a cache. None:
            unknown.
        partial: leave out variants that were not evaluated yet, and name them in `missing`.

    Raises:
        ArtifactError: a file is missing, malformed, or belongs to another evaluation; names it and the command.
    """
    dense = _evaluation(folder / EVALUATION, "dense", "dvc repro evaluate_dense")
    costs = _Costs(folder / COSTS, computed)
    specs = [
        VariantSpec(label, sparsity, str(pattern), _gathers(settings))
        for label, settings in methods.items()
        for sparsity, pattern in sparsities.items()
    ]
    missing = {spec for spec in specs if partial and not _metrics(folder, spec).is_file()}
    return ReportData(
        folder=folder.name,
        dense=dense,
        variants=tuple(_variant(folder, spec, dense, costs) for spec in specs if spec not in missing),
        shared_costs=costs.shared(),
        model=model,
        calibration=calibration,
        evaluation=evaluation or {},
        methods=methods,
        provenance=provenance,
        missing=tuple(spec.name for spec in specs if spec in missing),
    )


def load_project(
    layout: Layout,
    params: Params,
    *,
    provenance: Mapping[str, object],
    computed: Collection[str] | None = None,
    partial: bool = False,
) -> ReportData:
    """Read the results of the variants that params.yaml lists and nothing else; arguments and errors as `load`."""
    return load(
        layout.data,
        {label: method.model_dump(mode="json", exclude_defaults=True) for label, method in params.methods.items()},
        {label: str(params.pattern(label)) for label in params.sparsities},
        model=params.model.model_dump(mode="json"),
        calibration=described(params.calibration),
        evaluation=params.evaluation.model_dump(mode="json"),
        provenance=provenance,
        computed=computed,
        partial=partial,
    )


def _gathers(settings: Mapping[str, object]) -> bool:
    """Return whether a method's masks are N:M in an order of inputs that the checkpoint does not have."""
    match settings:
        case {"permute": [*kinds]}:
            return Permutation.CHANNELS in kinds
    return False


def _metrics(folder: Path, spec: VariantSpec) -> Path:
    return folder / EVALUATION / spec.method / f"{spec.sparsity}.json"


def _variant(folder: Path, spec: VariantSpec, dense: Measured, costs: _Costs) -> Variant:
    command = f"dvc repro evaluate@{spec.name}"
    root = _metrics(folder, spec).parent
    found = _evaluation(root, spec.sparsity, command)
    compared = [("json", key, getattr(found.metrics, key), getattr(dense.metrics, key)) for key in _SAME_METRICS]
    ours, theirs = found.details.provenance, dense.details.provenance
    compared += [("layers.json", key, ours.get(key), theirs.get(key)) for key in _SAME_PROVENANCE]
    for ending, key, got, expected in compared:
        if got != expected:
            raise ArtifactError(
                str(root / f"{spec.sparsity}.{ending}"),
                f"{key} {got}",
                f"{expected}, as for the dense model: other text cannot be compared",
                f"Run `{command}`.",
            )
    return Variant(spec, found, costs.of(spec, command))


def _evaluation(root: Path, name: str, command: str) -> Measured:
    metrics, path = Metrics.read(root / f"{name}.json", command), root / f"{name}.layers.json"
    details = Details.read(path, command)
    if len(details.window_losses) != metrics.windows:
        raise ArtifactError(
            str(path),
            f"{len(details.window_losses)} window losses",
            f"{metrics.windows}, as {name}.json counts windows",
            f"Run `{command}`.",
        )
    return Measured(metrics, details)


class _Costs:
    """The cost files below a folder; `computed` as in `load`."""

    def __init__(self, root: Path, computed: Collection[str] | None) -> None:
        self._root, self._computed = root, computed

    def of(self, spec: VariantSpec, command: str) -> tuple[StageCost, ...]:
        """Return the costs of a variant's stages."""
        paths = {stage: self._root / stage / spec.method / f"{spec.sparsity}.json" for stage in _VARIANT_STAGES}
        paths["score"] = self._root / "score" / f"{spec.method}.json"
        evaluate = self._root / "evaluate" / spec.method / f"{spec.sparsity}.json"
        paths |= {"evaluate": evaluate} if evaluate.is_file() else {}
        pack = self._root / "pack" / spec.method / f"{spec.sparsity}.json"
        paths |= {"pack": pack} if pack.is_file() else {}
        found = [self._read(stage, path, command) for stage, path in paths.items()]
        return tuple(entry for entry in found if entry.stage != "pack" or entry.cost.packed or entry.cost.beside_dense)

    def shared(self) -> tuple[StageCost, ...]:
        """Return the costs of the stages that run once for all variants."""
        root = self._root
        paths = {}
        for stage in _SHARED_STAGES:
            paths[stage] = root / f"{stage}.json"
            paths |= {f"{stage} {path.stem}": path for path in sorted((root / stage).glob("*.json"))}
        found = [self._read(stage, path, "dvc repro") for stage, path in paths.items() if path.is_file()]
        return tuple(entry for entry in found if entry.cost.seconds)  # gradients that nothing needed took none

    def _read(self, stage: str, path: Path, command: str) -> StageCost:
        cached = None if self._computed is None else str(path.relative_to(self._root)) not in self._computed
        return StageCost(stage, Cost.read(path, command), cached)
