"""Mask: which weights stay, from the scores and a sparsity pattern.

With dense propagation that needs the scores, and where a solver or a refinement looks at them the weights and the
statistics. With pruned propagation the model is pruned block after block, and this stage also stores the weights that
it solved, which `apply` puts together. So it does with the weights of SparseGPT's sweep, and where a composition
quantises or changes biases: integers, scales and biases are stored here, once.

Where a composition permutes neurons or heads and the pattern is N:M, an order is found first, in the unpruned model,
and stored. From there on everything is that of the model in this order: masks, solved weights, the checkpoint. Where
it permutes the channels of each layer, their orders are found with the masks and stored beside them; nothing moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from stages._masking import MaskJob
from stages._ordered import ORDERS, find_ordered
from stages._project import Method, Project, Root, Sparsity, main, say
from stages._structures import measuring, open_plan
from zpruner.artifacts.store import ArtifactReader, Provenance, artifact_writer
from zpruner.checkpoint import SolvedWriter
from zpruner.execution import choose, open_runner
from zpruner.model import PrunableLayer
from zpruner.patterns import StructuredPattern
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import derive_mask
from zpruner.pruning.memory import workspace_bytes
from zpruner.pruning.sequential import layer_patterns, prune_blocks
from zpruner.pruning.structured import StructureChoice, look
from zpruner.runtime.prefetch import ahead
from zpruner.runtime.progress import progress
from zpruner.settings.base import canonical_json
from zpruner.types import LayerStats, ScoreMatrix, SparsityPattern


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/masks/METHOD/SPARSITY, data/orders/METHOD/SPARSITY and data/solved/METHOD/SPARSITY.

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
    order_work = project.work("mask", method, sparsity, part=ORDERS, **inputs)
    with (
        artifact_writer(order_work, ORDERS, replace(provenance, dtype="int64")) as orders,
        artifact_writer(mask_work, "masks", provenance) as masks,
        solved_work,
    ):
        solved = SolvedWriter(solved_work, solved_from)
        model = find_ordered(project, method, sparsity, dense, activations, orders)
        job = MaskJob(project, composition, pattern, model, scores, masks, solved, orders)
        patterns = _patterns(job)
        if propagation == "pruned":
            _prune_blocks(job, patterns)
        elif isinstance(patterns, StructureChoice):
            _choose(job, patterns)
        else:
            _select(job, patterns)
        orders.finish(project.orders(method, sparsity))
        solved.finish(project.solved(method, sparsity))
        digest = ArtifactReader(project.orders(method, sparsity), ORDERS).digest
        masks.finish(project.masks(method, sparsity), layers=activations.reader.index["layers"], **{ORDERS: digest})
        project.write_cost("mask", method, sparsity, seconds=mask_work.seconds, layers=len(activations.layers))


def _patterns(job: MaskJob) -> Mapping[str, SparsityPattern] | StructureChoice:
    """Return each layer's pattern, or what a structured one removes: both are found in the unpruned model."""
    inventory, pattern = job.model.activations.inventory, job.pattern
    if not isinstance(pattern, StructuredPattern):
        return layer_patterns(job.composition, pattern, inventory, job.read_dense)
    plan = open_plan(job.project, job.model.dense, pattern, inventory)
    measures = measuring(job.project, inventory, job.model.dense, job.masks.work)
    say(f"{job.masks.work.name}: {plan.words}")
    return look(plan, job.composition, job.read, job.score, *measures)


def _select(job: MaskJob, patterns: Mapping[str, SparsityPattern]) -> None:
    """Derive every layer's mask from its scores; solvers and refinements look at weights and statistics too.

    A composition whose weights are stored is carried out whole.
    """
    composition, layers, work = job.composition, job.model.activations.layers, job.masks.work
    looks = composition.solves or job.ahead or composition.refinement is not None
    todo = [layer for layer in layers if not job.has(layer)]

    def read(layer: PrunableLayer) -> tuple[ScoreMatrix | None, tuple[Tensor, LayerStats] | None]:
        scores = None if composition.solves else ScoreMatrix(layer.name, job.score(layer))
        return scores, job.read(layer) if looks else None

    done = len(layers) - len(todo)
    for layer, (scores, looked_at) in progress(ahead(todo, read), work.name, len(layers), "layer", done):
        pattern = patterns[layer.name]
        if looked_at is not None and job.ahead:
            job.keep(layer, composition.prune(*looked_at, pattern, scores, biased=layer.bias is not None))
        elif looked_at is not None:
            job.keep_mask(layer, composition.mask(*looked_at, pattern, scores))
        elif scores is not None:
            job.keep_mask(layer, derive_mask(composition, scores, pattern))


def _choose(job: MaskJob, choice: StructureChoice) -> None:
    """Derive the masks of structures block by block, from scores, or from weights and statistics.

    A composition whose weights are stored is carried out whole.
    """
    composition, inventory = job.composition, job.model.activations.inventory
    blocks = [[la for la in inventory.layers if la.block == block] for block in range(inventory.n_blocks)]
    todo = [layers for layers in blocks if not all(map(job.has, layers))]
    done = len(blocks) - len(todo)
    for layers in progress(todo, job.masks.work.name, len(blocks), "block", done):
        found = {mask.layer: mask for mask in choice.masks(layers, composition, job.read, job.score)}
        for layer in layers:
            if job.has(layer):
                continue
            if job.ahead:
                weight, stats = job.read(layer)
                mask = found[layer.name].to(weight.device)
                job.keep(layer, composition.prune_by(weight, mask, stats, biased=layer.bias is not None))
            else:
                job.keep_mask(layer, found[layer.name])


def _prune_blocks(job: MaskJob, patterns: Mapping[str, SparsityPattern] | StructureChoice) -> None:
    """Prune the model in memory block after block, storing masks and weights."""
    params, inventory, work = job.project.params, job.model.activations.inventory, job.masks.work
    dense = job.model.dense
    windows, _ = job.project.open_windows("calibration", dense)
    batch_size = params.calibration.batch_size
    beside = workspace_bytes(job.composition, inventory, windows, batch_size=batch_size)
    choice = choose(params.machine, dense.tensor_bytes + beside)
    say(f"{work.name}: {choice.words}")
    runner = open_runner(dense, params.model, params.machine, choice.streamed, work.scratch / "hidden", job.model.order)
    layers = {layer.name: layer for layer in inventory.layers}
    done = [name for name in layers if job.solved.has(name)]
    blocks = prune_blocks(
        runner.model,
        inventory,
        windows,
        job.composition,
        patterns,
        batch_size=batch_size,
        min_expert_tokens=params.calibration.min_expert_tokens,
        finished={name: partial(job.solved.read, name, str(runner.device)) for name in done},
        solved=lambda one: job.keep(layers[one.mask.layer], one.pruned),
        runner=runner,
        unpruned=lambda name: job.unpruned(layers[name]),
    )
    todo = {layer.block for layer in inventory.layers if layer.name not in done}
    for _ in progress(blocks, "prune block after block", inventory.n_blocks, "block", inventory.n_blocks - len(todo)):
        pass


if __name__ == "__main__":
    main(run)
