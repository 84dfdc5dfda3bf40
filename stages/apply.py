"""Apply: the pruned checkpoint, zeros in place, weights updated where the method says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from stages._project import Method, Project, Root, Sparsity, main
from stages._variant import VariantWeights
from zpruner.artifacts.files import digest_of
from zpruner.artifacts.store import ArtifactReader
from zpruner.artifacts.work import Work
from zpruner.checkpoint import Checkpoint, write_manifest, write_pruned
from zpruner.checkpoint.card import GATHERED, LATER, PruningFacts, model_card, reordered
from zpruner.pruning.compose import compose
from zpruner.runtime.progress import counter


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/pruned/METHOD/SPARSITY, an ordinary Hugging Face checkpoint.

    Where evaluation.checkpoints leaves the variant out, only a manifest with a digest of the pruned weights is written;
    evaluate makes them again.

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        root: the project folder.
    """
    project = Project.open(root)
    dense = project.open_dense()
    variant = VariantWeights(project, method, sparsity, dense)
    masks, activations, facts, moves = variant.masks, variant.activations, variant.facts, variant.model.order.moves
    keep = project.params.keeps_checkpoint(method, sparsity)
    work = project.work("apply", method, sparsity, **variant.key, checkpoint=keep)
    card = model_card(dense.folder, _facts(project, method, sparsity, masks, dense))
    shards = activations.inventory.n_blocks + 1
    steps, unit = (shards, "shard") if keep else (len(activations.layers), "layer")
    with work, counter(f"apply {method} {sparsity}", steps, unit) as step:
        if keep and variant.plan is not None:
            variant.cut(work, step, card)
        elif keep:
            write_pruned(
                dense, activations.layers, variant.prune, work, facts, step, card, bias=variant.bias, moves=moves
            )
        else:
            digest = _digest(work, variant, step)
            write_manifest(work.files, dense.model, **facts, pruned_weights=digest)
        work.publish(project.pruned(method, sparsity))
        project.write_cost("apply", method, sparsity, seconds=work.seconds, layers=len(activations.layers))


def _digest(work: Work, variant: VariantWeights, step: Callable[[], None]) -> str:
    """Return a digest of all pruned weights: where it stays the same, nothing has to be evaluated again."""
    found: dict[str, str] = {}
    for layer in variant.activations.layers:
        entry = work.done(layer.name)
        if entry is None:
            digest = xxhash.xxh3_128(_bytes(variant.prune(layer, variant.model.weight(layer))))
            if variant.bias is not None and (bias := variant.model.bias(layer)) is not None:
                digest.update(_bytes(variant.bias(layer, bias)))
            entry = {"checksum": digest.hexdigest()}
            work.record(layer.name, entry)
        found[layer.name] = entry["checksum"]
        step()
    return digest_of(found)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def _facts(project: Project, method: str, sparsity: str, masks: ArtifactReader, dense: Checkpoint) -> PruningFacts:
    """Return what the model card says: what is known before the variant is evaluated."""
    made_from = masks.provenance
    counts = masks.files.values()
    composition, pattern = compose(project.params.method(method)), project.params.pattern(sparsity)
    moved = sorted(composition.moved(pattern))
    notes = [*([reordered(moved)] if moved else []), *([GATHERED] if composition.gathers(pattern) else []), LATER]
    return PruningFacts(
        base=dense.model,
        method=method,
        pattern=made_from.pattern,
        settings=project.params.method(method).model_dump(mode="json", exclude_defaults=True),
        calibration={
            "windows": made_from.windows,
            "tokens": made_from.tokens,
            "propagation": made_from.propagation,
            "calibration_hash": made_from.calibration_hash,
        },
        note="\n\n".join(notes),
        sparsity=1.0 - sum(facts["kept"] for facts in counts) / sum(facts["weights"] for facts in counts),
    )


if __name__ == "__main__":
    main(run)
