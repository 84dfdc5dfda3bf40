"""Apply: the pruned checkpoint, zeros in place, weights updated where the method says so."""

from __future__ import annotations

from pathlib import Path

from stages._project import Method, Project, Root, Sparsity, main
from stages._variant import Variant
from zpruner.model import Checkpoint, write_pruned
from zpruner.model.card import LATER, PruningFacts, model_card
from zpruner.progress import counter
from zpruner.store import ArtifactReader


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/pruned/METHOD/SPARSITY, an ordinary Hugging Face checkpoint.

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        root: the project folder.
    """
    project = Project.open(root)
    dense = Checkpoint(project.dense)
    variant = Variant(project, method, sparsity, dense)
    masks, activations, facts = variant.masks, variant.activations, variant.facts
    work = project.work("apply", method, sparsity, **variant.key)
    card = model_card(dense.folder, _facts(project, method, masks, dense))
    shards = activations.inventory.n_blocks + 1
    with work, counter(f"apply {method} {sparsity}", shards, "shard") as step:
        write_pruned(dense, activations.layers, variant.prune, work, facts, step, card)
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
        note=LATER,
        sparsity=1.0 - sum(facts["kept"] for facts in counts) / sum(facts["weights"] for facts in counts),
    )


if __name__ == "__main__":
    main(run)
