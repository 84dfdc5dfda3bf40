"""Evaluate: what a variant (or the dense model) predicts, what its layers lost, and what it takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from stages._layers import measure_layers, shown_layers
from stages._measure import Step, batches_of, measure, speed_of
from stages._ordered import OrderedModel, open_ordered
from stages._project import Method, Project, Root, Sparsity, main, say
from stages._samples import continued, sample, tokenizer_of
from stages._variant import VariantWeights, open_solved
from zpruner.artifacts.files import digest_of
from zpruner.artifacts.results import (
    Details,
    Divergence,
    Histogram,
    Layer,
    Metrics,
    Storage,
    Task,
    ZeroShot,
)
from zpruner.artifacts.store import ArtifactReader
from zpruner.artifacts.work import Work
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.errors import InvalidSettingError
from zpruner.evaluate import (
    ZeroShot as Harness,
)
from zpruner.evaluate import (
    check_protocol,
    error_basis,
    flops_per_token,
    mean_interval,
    perplexity_interval,
    perplexity_of,
    score_histogram,
    share_of_zeros,
    stored_bytes,
    verdict,
)
from zpruner.execution import Runner, choose, open_runner
from zpruner.model import (
    Parameters,
    PrunableLayer,
    get_parameters,
    limits_of,
    set_parameters,
    table_bytes,
    take_inventory,
)
from zpruner.patterns import StructuredPattern
from zpruner.pruning.compose import compose
from zpruner.runtime.progress import counter
from zpruner.settings.params import ZeroShotSettings
from zpruner.sources import file_sha256
from zpruner.structures import Reordering
from zpruner.text import counted_tokens, read_begin
from zpruner.types import Stat


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
            "Name a variant, or the dense model.",
        )
    project = Project.open(root)
    settings, tasks = project.params.evaluation.perplexity, project.params.evaluation.zero_shot
    check_protocol(settings)
    labels = ("dense",) if dense else (method, sparsity)
    folder = project.dense if dense else project.pruned(method, sparsity)
    unpruned = project.open_dense()
    checkpoint = unpruned if dense else project.open_pruned(method, sparsity, unpruned.model_hash)
    # A variant without its own checkpoint is made from the dense model.
    made = not checkpoint.tensor_bytes
    structured = not dense and isinstance(project.params.pattern(sparsity), StructuredPattern)
    variant = VariantWeights(project, method, sparsity, unpruned) if made or structured else None
    windows, windows_hash = project.open_windows("evaluation", unpruned)
    begin = read_begin(project.tokens("evaluation"))
    counted = counted_tokens(windows.shape[1], settings.stride, len(begin))
    calibration_hash = str(checkpoint.manifest.get("calibration_hash"))
    activations = None if dense else project.open_activations(unpruned, calibration_hash)
    masks, model = None, None
    if activations is not None:
        own = replace(project.variant(method, sparsity), model_hash=unpruned.model_hash)
        masks = ArtifactReader(project.masks(method, sparsity), "masks", own)
        model = open_ordered(project, method, sparsity, unpruned, activations, masks)
    work = project.work(
        "evaluate",
        *labels,
        checkpoint=digest_of(checkpoint.manifest),
        windows=windows_hash,
        counted=counted,
        own_tasks=tasks and _own_tasks(tasks, root),
        activations=activations and activations.reader.digest,
    )
    n_layers = 0 if activations is None else len(activations.layers)
    steps = len(batches_of(windows, settings)) + n_layers + (0 if tasks is None else len(tasks.tasks))
    compared = not dense and settings.divergence > 0
    choice = choose(project.params.machine, unpruned.tensor_bytes * (2 if compared else 1))
    say(f"evaluate {' '.join(labels)}: {choice.words}")
    hidden = work.scratch / "hidden"
    with (
        work,
        counter(f"evaluate {' '.join(labels)}", steps, "step") as step,
        _cut(project, variant) if made and structured else nullcontext(unpruned if made else checkpoint) as opened,
    ):
        order = Reordering() if model is None or not made else model.order  # a checkpoint is in it already
        runner = open_runner(opened, project.params.model, project.params.machine, choice.streamed, hidden, order)
        if variant is not None and activations is not None and not structured:
            _prune(runner, variant, activations)

        def open_dense() -> Runner:
            return open_runner(
                unpruned, project.params.model, project.params.machine, choice.streamed, hidden / "dense"
            )

        measured = measure(work, runner, None if dense else open_dense, windows, settings, counted, step)
        facts = None
        if activations is not None and model is not None and masks is not None:
            pattern = project.params.pattern(sparsity)
            weights = _weights(runner, model, variant if structured else None)
            tables = table_bytes(runner.model)
            solved = open_solved(project, method, sparsity, activations, unpruned.model_hash)
            facts = measure_layers(work, weights, model, pattern, opened.folder, tables, solved, masks, step)
        layers = () if facts is None else facts.layers
        tokenizer = tokenizer_of(project)
        metrics = Metrics(
            perplexity=perplexity_of(measured["losses"]),
            perplexity_interval=perplexity_interval(measured["losses"]),
            loss=_mean(measured["losses"]),
            sparsity=_sparsity(layers),
            layer_error=_mean([layer.layer_error for layer in layers]),
            windows=windows.shape[0],
            tokens=windows.numel(),
            seqlen=windows.shape[1],
            bytes=_stored(folder, runner) if facts is None else facts.bytes,
            parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
            flops=flops_per_token(runner.model.config, project.params.model.blocks),
            divergence=_divergence(measured["kl"], measured["agreement"]),
            zero_shot=None
            if tasks is None
            else _zero_shot(work, project, tokenizer, runner, tasks, activations, structured, step),
            verdict=verdict(measured["losses"], measured["kl"], limits_of(runner.model.config)[0]),
        )
        if metrics.verdict is not None:
            say(f"warning: {' '.join(labels)} {metrics.verdict}")
        details = Details(
            layers=layers,
            layer_error_from=_basis(activations),
            window_losses=tuple(measured["losses"]),
            window_kl=tuple(measured["kl"]),
            window_agreement=tuple(measured["agreement"]),
            mask_sample="" if facts is None else facts.mask_sample,
            score_histograms=_histograms(project, facts.kept, model, method)
            if model is not None and facts is not None
            else (),
            sample=sample(tokenizer, windows, measured["choices"]),
            continuation=continued(work, project, tokenizer, runner),
            provenance={
                **{key: value for key, value in checkpoint.manifest.items() if isinstance(value, str)},
                "weights": "made in memory" if made else "checkpoint",
                "evaluation_text": settings.source,
                "evaluation_protocol": settings.protocol or "",
                "evaluation_hash": windows_hash,
                "evaluation_stride": settings.stride or settings.seqlen,
                "evaluation_bos": settings.begin,
                "evaluation_begin": " ".join(map(str, begin)),
            },
        )
        path = project.evaluation(*labels)
        details.write(path.with_name(f"{labels[-1]}.layers.json"))
        metrics.write(path)
        speed = speed_of(runner, windows, measured)
        project.write_cost(
            "evaluate", *labels, seconds=work.seconds, layers=n_layers, streamed=choice.streamed, **speed
        )


def _stored(folder: Path, runner: Runner) -> Storage:
    stored = stored_bytes(folder)
    return Storage(stored=stored, read=stored - table_bytes(runner.model))


def _basis(activations: Activations | None) -> Literal["gram", "diagonal"]:
    return "gram" if activations is None else error_basis(activations.stats(activations.layers[0].name))


def _prune(runner: Runner, variant: VariantWeights, activations: Activations) -> None:
    """Make the model a variant: its layers are pruned in memory, as `apply` prunes them on disk."""

    def prepare(block: int) -> None:
        for layer in activations.layers:
            if layer.block == block:
                dense = get_parameters(runner.model, layer)
                bias = None if variant.bias is None or dense.bias is None else variant.bias(layer, dense.bias)
                set_parameters(runner.model, layer, Parameters(variant.prune(layer, dense.weight), bias))

    runner.change(activations.inventory.n_blocks, prepare)


def _histograms(project: Project, kept: dict[str, Tensor], model: OrderedModel, method: str) -> tuple[Histogram, ...]:
    """Return the scores of the first and last layer of the middle block, kept and pruned ones counted apart.

    Scores of these two layers are computed again, so that a report needs no score artifacts. Empty where a method
    chooses its mask itself, needs gradients, or saw other activations than the dense model's.
    """
    composition = compose(project.params.method(method))
    gradients = Stat.GRAD_SQ in composition.needs
    if composition.solves or gradients or project.params.calibration.propagation != "dense":
        return ()
    found = []
    for layer in shown_layers(model.activations):
        keep = kept[layer.name]
        stats = model.stats(layer).to(keep.device)
        scores = composition.score(model.weight(layer).to(keep.device), stats)
        found.append(score_histogram(layer.name, scores.values, keep))
    return tuple(found)


@contextmanager
def _cut(project: Project, variant: VariantWeights | None) -> Iterator[Checkpoint]:
    """Write a variant without its structures for as long as it is evaluated."""
    assert variant is not None
    with project.work("evaluate", variant.method, variant.sparsity, part="cut", **variant.key) as work:
        variant.cut(work, lambda: None, "")
        yield Checkpoint(work.files, {"role": "pruned"})
        shutil.rmtree(work.folder)


def _weights(
    runner: Runner, model: OrderedModel, variant: VariantWeights | None
) -> Iterator[tuple[PrunableLayer, Tensor]]:
    """Yield every layer with its pruned weight (out, in), zeros in place; of structures a checkpoint has none."""
    if variant is None:
        yield from runner.weights(model.activations.layers)
    else:
        yield from ((layer, variant.prune(layer, model.weight(layer))) for layer in model.activations.layers)


def _zero_shot(
    work: Work,
    project: Project,
    tokenizer: Any,
    runner: Runner,
    settings: ZeroShotSettings,
    activations: Activations | None,
    structured: bool,
    step: Step,
) -> ZeroShot:
    """Return the scores of every task, and the sparsity of the model that got them, counted in memory."""
    harness: Harness | None = None
    found: dict[str, Any] = {}
    for task in settings.tasks:
        entry = work.done(f"task-{task}")
        if entry is None:
            if harness is None:
                harness = Harness(runner.model, tokenizer, settings, project.root, runner.device)
            entry = harness.run(task)
            work.record(f"task-{task}", entry)
        found |= entry
        step()
    layers: tuple[PrunableLayer, ...]
    if activations is None or structured:
        layers = take_inventory(runner.model, project.params.model.blocks, project.params.model.ignore).layers
    else:
        layers = activations.layers
    return ZeroShot(
        sparsity=share_of_zeros(weight for _, weight in runner.weights(layers)),
        tasks={task: Task.model_validate(entry) for task, entry in found.items()},
    )


def _own_tasks(settings: ZeroShotSettings, root: Path) -> dict[str, str]:
    """Return the hash of every file of the folder of own tasks."""
    if settings.include_path is None:
        return {}
    folder = root / settings.include_path
    return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _divergence(kl: list[float], agreement: list[float]) -> Divergence | None:
    """Return what the compared windows tell, None where none were compared."""
    if not kl:
        return None
    return Divergence(
        kl=_mean(kl),
        kl_interval=mean_interval(kl, low=0.0),
        top1_agreement=_mean(agreement),
        top1_agreement_interval=mean_interval(agreement, low=0.0, high=1.0),
        windows=len(kl),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _sparsity(layers: tuple[Layer, ...]) -> float:
    weights = sum(layer.weights for layer in layers)
    return sum(layer.sparsity * layer.weights for layer in layers) / weights if weights else 0.0


if __name__ == "__main__":
    main(run)
