"""Mask: which weights stay, from the scores and a sparsity pattern.

With dense propagation that needs the scores, and where a solver or a refinement looks at them the weights and the
statistics. With pruned propagation the model is pruned block after block, and this stage also stores the weights that
it solved, which `apply` puts together. So it does where a composition quantises: the integers and scales are stored
here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from stages._project import Method, Project, Root, Sparsity, main, say
from stages._structures import measuring, open_plan
from zpruner.artifacts.store import ArtifactReader, ArtifactWriter, Provenance, artifact_writer
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint, SolvedWriter
from zpruner.execution import choose, open_runner
from zpruner.model import PrunableLayer, resolve_device
from zpruner.patterns import StructuredPattern
from zpruner.pruning.composition import Composition, Pruned, compose, derive_mask
from zpruner.pruning.memory import beside_the_weights
from zpruner.pruning.sequential import SolvedLayer, layer_patterns, prune_blocks
from zpruner.pruning.structured import Read, Scores, StructureChoice
from zpruner.runtime.prefetch import ahead
from zpruner.runtime.progress import progress
from zpruner.runtime.transfer import to_device
from zpruner.settings.base import canonical_json
from zpruner.types import LayerStats, Mask, ScoreMatrix, SparsityPattern, Stat


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/masks/METHOD/SPARSITY and data/solved/METHOD/SPARSITY.

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        root: the project folder.
    """
    project = Project.open(root)
    settings, pattern = project.params.method(method), project.params.pattern(sparsity)
    composition = compose(settings)
    propagation = project.params.calibration.propagation
    scored = Provenance(method=settings.score, settings=canonical_json(settings.settings), propagation=propagation)
    scores = ArtifactReader(project.scores(method), "scores", scored)
    dense = project.open_dense()
    activations = project.open_activations(dense)
    measured_on = Provenance(
        model_hash=activations.provenance.model_hash, calibration_hash=activations.provenance.calibration_hash
    )
    measured_on.require(asdict(scores.provenance), scores.folder)
    made_from = scores.provenance
    provenance = replace(
        made_from, dtype="bool", method=method, settings=canonical_json(settings), pattern=str(pattern)
    )
    solved_from = replace(provenance, dtype=dense.dtype)
    inputs = {"scores": scores.digest, "activations": activations.reader.digest}
    mask_work = project.work("mask", method, sparsity, **inputs)
    solved_work = project.work("mask", method, sparsity, part="solved", **inputs)
    with artifact_writer(mask_work, "masks", provenance) as masks, solved_work:
        solved = SolvedWriter(solved_work, solved_from)
        patterns: Mapping[str, SparsityPattern] | StructureChoice
        if isinstance(pattern, StructuredPattern):
            patterns = _look(project, composition, pattern, activations, dense, scores, masks)
        else:
            patterns = layer_patterns(
                composition,
                pattern,
                activations.inventory,
                lambda layer: (dense.read_weight(layer), activations.stats(layer.name)),
            )
        if propagation == "pruned":
            _prune_blocks(project, composition, patterns, activations, dense, scores, masks, solved)
        elif isinstance(patterns, StructureChoice):
            _choose(project, composition, patterns, activations, dense, scores, masks, solved)
        else:
            _select(project, composition, patterns, activations, dense, scores, masks, solved)
        solved.finish(project.solved(method, sparsity))
        masks.finish(project.masks(method, sparsity), layers=activations.reader.index["layers"])
        project.write_cost("mask", method, sparsity, seconds=mask_work.seconds, layers=len(activations.layers))


def _select(
    project: Project,
    composition: Composition,
    patterns: Mapping[str, SparsityPattern],
    activations: Activations,
    dense: Checkpoint,
    scores: ArtifactReader,
    masks: ArtifactWriter,
    solved: SolvedWriter,
) -> None:
    """Derive every layer's mask from its scores; solvers and refinements look at weights and statistics too.

    A composition that quantises is carried out whole.
    """
    solves, quantizes = composition.solves, composition.rounding is not None
    looks = solves or quantizes or composition.refinement is not None
    device = resolve_device(project.params.machine.device)
    layers = activations.layers
    todo = [la for la in layers if not solved.has(la.name) and (quantizes or masks.work.done(la.name) is None)]

    def read(layer: PrunableLayer) -> tuple[ScoreMatrix | None, tuple[Tensor, LayerStats] | None]:
        values = None if solves else ScoreMatrix(layer.name, to_device(_score(scores, layer), device))
        if not looks:
            return values, None
        stats = replace(activations.stats(layer.name), grad_sq=_gradient(scores, layers)(layer.name))
        return values, (to_device(dense.read_weight(layer), device), stats.to(device))

    done = len(layers) - len(todo)
    for layer, (values, looked_at) in progress(ahead(todo, read), masks.work.name, len(layers), "layer", done):
        pattern = patterns[layer.name]
        if looked_at is not None:
            weight, stats = looked_at
            if quantizes:
                _keep(composition.prune(weight, stats, pattern, values), masks, solved)
                continue
            mask = composition.mask(weight, stats, pattern, values)
        else:
            assert values is not None
            mask = derive_mask(composition, values, pattern)
        _write_mask(masks, mask, _read_later(composition, scores, layer))


def _look(
    project: Project,
    composition: Composition,
    pattern: StructuredPattern,
    activations: Activations,
    dense: Checkpoint,
    scores: ArtifactReader,
    masks: ArtifactWriter,
) -> StructureChoice:
    """Return what a pattern removes, with what is chosen or measured in the unpruned model."""
    plan = open_plan(project, dense, pattern, activations.inventory)
    read = _reading(project, activations, dense, scores)
    score = _scoring(project, composition, scores, read)
    return plan.look(composition, read, score, *measuring(project, activations.inventory, dense, masks.work))


def _choose(
    project: Project,
    composition: Composition,
    choice: StructureChoice,
    activations: Activations,
    dense: Checkpoint,
    scores: ArtifactReader,
    masks: ArtifactWriter,
    solved: SolvedWriter,
) -> None:
    """Derive the masks of structures block by block, from scores, or from weights and statistics.

    A composition that quantises is carried out whole.
    """
    read = _reading(project, activations, dense, scores)
    score = _scoring(project, composition, scores, read)
    inventory, work, quantizes = activations.inventory, masks.work, composition.rounding is not None

    def done(layer: PrunableLayer) -> bool:
        return solved.has(layer.name) if quantizes else work.done(layer.name) is not None

    blocks = [[la for la in inventory.layers if la.block == block] for block in range(inventory.n_blocks)]
    todo = [layers for layers in blocks if not all(map(done, layers))]
    for layers in progress(todo, work.name, len(blocks), "block", len(blocks) - len(todo)):
        found = {mask.layer: mask for mask in choice.masks(layers, composition, read, score)}
        for layer in layers:
            if done(layer):
                continue
            if quantizes:
                weight, stats = read(layer)
                _keep(composition.prune_by(weight, found[layer.name].to(weight.device), stats), masks, solved)
            else:
                _write_mask(masks, found[layer.name], _read_later(composition, scores, layer))


def _reading(project: Project, activations: Activations, dense: Checkpoint, scores: ArtifactReader) -> Read:
    """Return what reads a layer's weight and the statistics of the unpruned model."""
    device, gradient = resolve_device(project.params.machine.device), _gradient(scores, activations.layers)

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        stats = replace(activations.stats(layer.name), grad_sq=gradient(layer.name))
        return to_device(dense.read_weight(layer), device), stats.to(device)

    return read


def _scoring(project: Project, composition: Composition, scores: ArtifactReader, read: Read) -> Scores:
    """Return what reads a layer's scores; under pruned propagation they are not stored, and are taken anew."""
    if project.params.calibration.propagation == "pruned":
        return lambda layer: composition.score(*read(layer)).values
    device = resolve_device(project.params.machine.device)
    return lambda layer: to_device(_score(scores, layer), device)


def _prune_blocks(
    project: Project,
    composition: Composition,
    patterns: Mapping[str, SparsityPattern] | StructureChoice,
    activations: Activations,
    dense: Checkpoint,
    scores: ArtifactReader,
    masks: ArtifactWriter,
    solved: SolvedWriter,
) -> None:
    """Prune the model in memory block after block, storing masks and weights."""
    params, inventory, work = project.params, activations.inventory, masks.work
    windows, _ = project.open_windows("calibration", dense)
    batch_size = params.calibration.batch_size
    beside = beside_the_weights(composition, inventory, windows, batch_size=batch_size)
    choice = choose(params.machine, dense.tensor_bytes + beside)
    say(f"{work.name}: {choice.words}")
    runner = open_runner(dense, params.model, params.machine, choice.streamed, work.scratch / "hidden")
    model = runner.model

    done = [layer.name for layer in inventory.layers if solved.has(layer.name)]
    known = {layer: partial(solved.read, layer, str(runner.device)) for layer in done}

    blocks = prune_blocks(
        model,
        inventory,
        windows,
        composition,
        patterns,
        batch_size=batch_size,
        min_expert_tokens=params.calibration.min_expert_tokens,
        finished=known,
        solved=partial(_keep, masks=masks, solved=solved),
        runner=runner,
        gradient=_gradient(scores, inventory.layers),
    )
    todo = {layer.block for layer in inventory.layers if layer.name not in known}
    for _ in progress(blocks, "prune block after block", inventory.n_blocks, "block", inventory.n_blocks - len(todo)):
        pass


def _keep(found: Pruned | SolvedLayer, masks: ArtifactWriter, solved: SolvedWriter) -> None:
    """Store a layer's mask and its weight; the weight last, since it says that the layer is done."""
    _write_mask(masks, found.mask)
    masks.drain()
    solved.write(found.mask.layer, found.weight, found.quantized)


def _score(scores: ArtifactReader, layer: PrunableLayer) -> Tensor:
    return scores.read_matrix(layer.name, "score", torch.float32, layer.shape)


def _gradient(scores: ArtifactReader, layers: Iterable[PrunableLayer]) -> Callable[[str], Tensor | None]:
    """Return what gives a layer's grad_sq: the score stage passes it on where scoring was left to this stage."""
    if "grad_sq" not in next((facts["columns"] for facts in scores.files.values()), ()):
        return lambda _: None
    shapes = {layer.name: layer.shape for layer in layers}
    return lambda layer: scores.read_matrix(layer, "grad_sq", torch.float32, shapes[layer])


def _read_later(composition: Composition, scores: ArtifactReader, layer: PrunableLayer) -> dict[str, Tensor]:
    """Return the gradients that the weight update reads: `apply` reads no scores."""
    if composition.update is None or Stat.GRAD_SQ not in composition.update.required():
        return {}
    return {"grad_sq": scores.read_matrix(layer.name, "grad_sq", torch.float32, layer.shape)}


def _write_mask(masks: ArtifactWriter, mask: Mask, besides: Mapping[str, Tensor] | None = None) -> None:
    columns = {"keep": mask.keep, **(besides or {})}
    masks.write(mask.layer, columns, kept=int(mask.keep.sum()), weights=mask.keep.numel())


if __name__ == "__main__":
    main(run)
