"""Evaluate: what a variant (or the dense model) predicts, what its layers lost, and what it takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages._measure import Step, batches_of, load, measure, speed_of
from stages._project import Method, Project, Root, Sparsity, main
from zpruner.calibrate import Activations, read_windows
from zpruner.composition import compose
from zpruner.errors import InvalidSettingError
from zpruner.evaluate import (
    Bootstrap,
    Interval,
    ZeroShot,
    achieved_sparsity,
    check_protocol,
    error_basis,
    layer_error,
    perplexity_of,
    sample_mask,
    score_histogram,
    storage,
    stored_bytes,
)
from zpruner.model import Checkpoint, PrunableLayer, get_weight, take_inventory
from zpruner.params import ZeroShotSettings, canonical_json
from zpruner.progress import counter
from zpruner.sources import file_sha256, load_tokenizer
from zpruner.store import Provenance
from zpruner.work import Work, digest_of, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def run(method: Method = "", sparsity: Sparsity = "", dense: bool = False, root: Root = Path()) -> None:
    """Write data/evaluation/METHOD/SPARSITY.json and .layers.json (or dense.json and dense.layers.json).

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        dense: evaluate the unpruned model instead.
        root: the project folder.
    """
    if dense == bool(method and sparsity):
        raise InvalidSettingError(
            "evaluate",
            f"--method '{method}' --sparsity '{sparsity}'" + (" --dense" if dense else ""),
            "either both --method and --sparsity, or --dense",
            "Correct the command.",
        )
    project = Project.open(root)
    settings, tasks = project.params.evaluation.perplexity, project.params.evaluation.zero_shot
    check_protocol(settings)
    labels = ("dense",) if dense else (method, sparsity)
    folder = project.dense if dense else project.pruned(method, sparsity)
    checkpoint = Checkpoint(folder)
    checkpoint.verify_all()
    unpruned = checkpoint if dense else _unpruned(project, checkpoint, method, sparsity)
    windows, windows_hash = read_windows(project.tokens("evaluation"))
    activations = None if dense else _activations(project, checkpoint)
    work = project.work(
        "evaluate",
        *labels,
        checkpoint=digest_of(checkpoint.manifest),
        windows=windows_hash,
        batch_size=settings.batch_size,
        divergence=settings.divergence,
        stride=settings.stride,
        zero_shot=tasks and [canonical_json(tasks), _own_tasks(tasks, root)],
        activations=activations and activations.reader.digest,
    )
    n_layers = 0 if activations is None else len(activations.layers)
    steps = len(batches_of(windows, settings)) + n_layers + (0 if tasks is None else len(tasks.tasks))
    with work, counter(f"evaluate {' '.join(labels)}", steps, "step") as step:
        model = load(project, folder)
        measured = measure(work, model, None if dense else project, windows, settings, step)
        layers = [] if activations is None else _layers(work, model, unpruned, activations, step)
        metrics: dict[str, Any] = {
            "perplexity": perplexity_of(measured["losses"]),
            **_ends("perplexity", Bootstrap([measured["losses"]]).perplexity(0)),
            "loss": _mean(measured["losses"]),
            "sparsity": _weighted(layers, "sparsity"),
            "layer_error": _mean([entry["layer_error"] for entry in layers]),
            "windows": windows.shape[0],
            "tokens": windows.numel(),
            "seqlen": windows.shape[1],
            "bytes": _bytes(project, folder, model, activations, sparsity),
        }
        if measured["kl"]:
            metrics["divergence"] = {
                "kl": _mean(measured["kl"]),
                **_ends("kl", Bootstrap([measured["kl"]]).mean(0)),
                "top1_agreement": _mean(measured["agreement"]),
                **_ends("top1_agreement", Bootstrap([measured["agreement"]]).mean(0)),
                "windows": len(measured["kl"]),
            }
        if tasks is not None:
            metrics["zero_shot"] = _zero_shot(work, project, model, tasks, activations, step)
        details = {
            "layers": layers,
            "layer_error_from": _basis(activations),
            "window_losses": measured["losses"],
            "window_kl": measured["kl"],
            "window_agreement": measured["agreement"],
            "mask_sample": "" if activations is None else _mask_sample(model, activations),
            "score_histograms": []
            if activations is None
            else _histograms(project, model, unpruned, activations, method),
            "provenance": {
                **{key: value for key, value in checkpoint.manifest.items() if isinstance(value, str)},
                "evaluation_text": settings.source,
                "evaluation_protocol": settings.protocol or "",
                "evaluation_hash": windows_hash,
                "evaluation_stride": settings.stride or settings.seqlen,
            },
        }
        path = project.evaluation(*labels)
        write_json(path.with_suffix(".layers.json") if dense else path.with_name(f"{sparsity}.layers.json"), details)
        write_json(path, metrics)
        speed = speed_of(model, windows, measured)
        project.write_cost("evaluate", *labels, seconds=work.seconds, layers=n_layers, **speed)


def _unpruned(project: Project, checkpoint: Checkpoint, method: str, sparsity: str) -> Checkpoint:
    """Return the dense checkpoint, after checking that the pruned one is this variant of it."""
    dense = Checkpoint(project.dense)
    variant = Provenance(
        method=method,
        settings=canonical_json(project.params.method(method)),
        pattern=str(project.params.pattern(sparsity)),
    )
    variant.require(checkpoint.manifest, checkpoint.folder)
    made_from = Provenance(model_hash=dense.model_hash)
    made_from.require({"model_hash": checkpoint.manifest.get("dense")}, checkpoint.folder)
    return dense


def _activations(project: Project, checkpoint: Checkpoint) -> Activations:
    made_from = checkpoint.manifest
    expected = Provenance(model_hash=made_from["dense"], calibration_hash=made_from["calibration_hash"])
    return Activations(project.activations, expected)


def _basis(activations: Activations | None) -> str:
    return "gram" if activations is None else error_basis(activations.stats(activations.layers[0].name))


def _bytes(
    project: Project, folder: Path, model: PreTrainedModel, activations: Activations | None, sparsity: str
) -> dict[str, int]:
    if activations is None:
        return {"stored": stored_bytes(folder)}
    weights = (get_weight(model, layer) for layer in activations.layers)
    found = storage(folder, weights, project.params.pattern(sparsity))
    return {key: value for key, value in asdict(found).items() if value is not None}


def _mask_sample(model: PreTrainedModel, activations: Activations) -> str:
    total = sum(layer.in_features * layer.out_features for layer in activations.layers)
    return sample_mask(((layer, get_weight(model, layer)) for layer in activations.layers), total)


def _histograms(
    project: Project, model: PreTrainedModel, dense: Checkpoint, activations: Activations, method: str
) -> list[dict[str, Any]]:
    """Return the scores of the first and last layer of the middle block, kept and pruned ones counted apart.

    Scores of these two layers are computed again, so that a report needs no score artifacts. Empty where a method
    chooses its mask itself, or saw other activations than the dense model's.
    """
    composition = compose(project.params.method(method))
    if composition.method.depends_on_pattern or project.params.calibration.propagation != "dense":
        return []
    middle = [la for la in activations.layers if la.block == activations.inventory.n_blocks // 2]
    found = []
    for layer in dict.fromkeys((middle[0], middle[-1])) if middle else ():
        keep = get_weight(model, layer) != 0
        stats = activations.stats(layer.name).to(keep.device)
        scores = composition.score(dense.read_weight(layer).to(keep.device), stats)
        found.append({"layer": layer.name, **score_histogram(scores.values, keep)})
    return found


def _zero_shot(
    work: Work,
    project: Project,
    model: PreTrainedModel,
    settings: ZeroShotSettings,
    activations: Activations | None,
    step: Step,
) -> dict[str, Any]:
    """Return the scores of every task, and the sparsity of the model that got them, counted in memory."""
    harness: ZeroShot | None = None
    found: dict[str, Any] = {}
    for task in settings.tasks:
        entry = work.done(f"task-{task}")
        if entry is None:
            if harness is None:
                trust = project.params.model.trust_remote_code
                tokenizer = load_tokenizer(project.dense, trust_remote_code=trust)
                harness = ZeroShot(model, tokenizer, settings, project.root)
            entry = harness.run(task)
            work.record(f"task-{task}", entry)
        found |= entry
        step()
    layers: tuple[PrunableLayer, ...]
    if activations is None:
        layers = take_inventory(model, project.params.model.blocks, project.params.model.ignore).layers
    else:
        layers = activations.layers
    return {"sparsity": achieved_sparsity(model, layers), "tasks": found}


def _own_tasks(settings: ZeroShotSettings, root: Path) -> dict[str, str]:
    """Return the hash of every file of the folder of own tasks."""
    if settings.include_path is None:
        return {}
    folder = root / settings.include_path
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _ends(name: str, interval: Interval | None) -> dict[str, dict[str, float]]:
    """Return a 95 % interval over windows as an entry of a metrics file; nothing where there is none."""
    return {f"{name}_interval": asdict(interval)} if interval else {}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _weighted(layers: list[dict[str, Any]], key: str) -> float:
    weights = sum(entry["weights"] for entry in layers)
    return sum(entry[key] * entry["weights"] for entry in layers) / weights if weights else 0.0


def _layers(work: Work, model: Any, dense: Checkpoint, activations: Activations, step: Any) -> list[dict[str, Any]]:
    """Return achieved sparsity and layer error of every layer of the model in memory."""
    entries = []
    for layer in activations.layers:
        entry = work.done(layer.name)
        if entry is None:
            pruned = layer.view(model.get_parameter(layer.tensor).detach())
            stats = activations.stats(layer.name).to(pruned.device)
            entry = {
                "layer": layer.name,
                "block": layer.block,
                "kind": layer.kind,
                "weights": pruned.numel(),
                "sparsity": float((pruned == 0).double().mean()),
                "layer_error": layer_error(dense.read_weight(layer).to(pruned.device), pruned, stats),
            }
            work.record(layer.name, entry)
        entries.append(entry)
        step()
    return entries


if __name__ == "__main__":
    main(run)
