"""Apply: the pruned checkpoint, zeros in place, weights updated where the method says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from stages._project import Method, Project, Root, Sparsity, main
from stages.mask import read_mask
from zpruner.calibrate import Activations
from zpruner.composition import compose
from zpruner.model import Checkpoint, PrunableLayer, resolve_device, write_pruned
from zpruner.model.card import PruningFacts, model_card
from zpruner.params import canonical_json
from zpruner.progress import counter
from zpruner.store import ArtifactReader, Provenance


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/pruned/METHOD/SPARSITY, an ordinary Hugging Face checkpoint.

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        root: the project folder.
    """
    project = Project.open(root)
    settings, pattern = project.params.method(method), project.params.pattern(sparsity)
    composition = compose(settings)
    dense = Checkpoint(project.dense)
    variant = Provenance(
        model_hash=dense.model_hash, method=method, settings=canonical_json(settings), pattern=str(pattern)
    )
    masks = ArtifactReader(project.masks(method, sparsity), "masks", variant)
    measured = Provenance(model_hash=dense.model_hash, calibration_hash=masks.provenance.calibration_hash)
    if masks.provenance.propagation == "pruned":
        own = replace(masks.provenance, dtype="")  # the statistics must be this very variant's
        activations = Activations(project.propagated(method, sparsity), own)
    else:
        activations = Activations(project.activations, measured)
    work = project.work(
        "apply",
        method,
        sparsity,
        masks=masks.digest,
        dense=dense.model_hash,
        activations=activations.reader.digest,
    )
    device = resolve_device(project.params.model.device)

    def prune(layer: PrunableLayer, weight: Tensor) -> Tensor:
        mask = read_mask(masks, layer.name).to(device)
        if composition.update is None and composition.correction is None:
            return composition.apply(weight.to(device), mask, None).cpu()
        stats = activations.stats(layer.name).to(device)
        return composition.apply(composition.correct(weight.to(device), stats), mask, stats).cpu()

    facts = {"method": method, "settings": canonical_json(settings), "pattern": str(pattern)}
    facts |= {"dense": dense.model_hash, "calibration_hash": masks.provenance.calibration_hash}
    facts |= {"dtype": dense.manifest["dtype"], "propagation": masks.provenance.propagation}
    card = model_card(dense.folder, _facts(project, method, masks, dense))
    shards = activations.inventory.n_blocks + 1
    with work, counter(f"apply {method} {sparsity}", shards, "shard") as step:
        write_pruned(dense, activations.layers, prune, work, facts, step, card)
        work.publish(project.pruned(method, sparsity))
        project.write_cost("apply", method, sparsity, seconds=work.seconds, layers=len(activations.layers))


def _facts(project: Project, method: str, masks: ArtifactReader, dense: Checkpoint) -> PruningFacts:
    """Return what the model card says: what is known before the variant is evaluated."""
    made_from = masks.provenance
    counts = masks.files.values()
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
        sparsity=1.0 - sum(facts["kept"] for facts in counts) / sum(facts["weights"] for facts in counts),
    )


if __name__ == "__main__":
    main(run)
