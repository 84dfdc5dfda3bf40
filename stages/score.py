"""Score: the importance of every weight, by one method, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from stages._project import Method, Project, Root, main
from zpruner.artifacts.store import Provenance, artifact_writer
from zpruner.calibration import Gradients
from zpruner.model import PrunableLayer, resolve_device
from zpruner.pruning.compose import compose
from zpruner.runtime.prefetch import ahead
from zpruner.runtime.progress import progress
from zpruner.runtime.transfer import to_device
from zpruner.settings.base import canonical_json
from zpruner.types import LayerStats, Stat

T = TypeVar("T")


def run(method: Method, root: Root = Path()) -> None:
    """Write data/scores/METHOD.

    Args:
        method: a label under `methods` in params.yaml.
        root: the project folder.
    """
    project = Project.open(root)
    settings = project.params.method(method)
    composition = compose(settings)
    dense = project.open_dense()
    activations = project.open_activations(dense)
    propagation = project.params.calibration.propagation
    provenance = replace(
        activations.provenance,
        dtype="float32",
        method=settings.score,
        settings=canonical_json(settings.settings),
        propagation=propagation,
    )
    layers = activations.layers
    measured = Provenance(
        model_hash=activations.provenance.model_hash, calibration_hash=activations.provenance.calibration_hash
    )
    gradients = Gradients(project.gradients, measured) if Stat.GRAD_SQ in composition.needs else None
    # Solvers are run by the mask stage, as is everything where blocks pruned before count.
    deferred = composition.solves or propagation == "pruned"
    # What is read of gradients after the scores is passed on: later stages read nothing but this artifact.
    passed_on = gradients if deferred or Stat.GRAD_SQ in composition.needs_after_score else None
    work = project.work(
        "score",
        method,
        provenance=repr(provenance),
        activations=activations.reader.digest,
        gradients=gradients and gradients.reader.digest,
    )
    device = resolve_device(project.params.machine.device)
    with artifact_writer(work, "scores", provenance) as writer:
        todo = [layer for layer in layers if work.done(layer.name) is None]

        def bar(items: Iterable[T]) -> Iterable[T]:
            return progress(items, f"score {method}", len(layers), "layer", len(layers) - len(todo))

        def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
            stats = activations.stats(layer.name)
            if gradients is not None:
                stats = replace(stats, grad_sq=gradients.grad_sq(layer))
            return to_device(dense.read_weight(layer), device), stats.to(device)

        if not deferred:
            for layer, (weight, stats) in bar(ahead(todo, read)):
                writer.write(
                    layer.name, {"score": composition.score(weight, stats).values, **_columns(passed_on, layer)}
                )
        elif passed_on is not None:
            for layer in bar(todo):
                writer.write(layer.name, _columns(passed_on, layer))
        writer.finish(
            project.scores(method),
            layers=[layer.to_json() for layer in layers],
        )
        project.write_cost("score", method, seconds=work.seconds, layers=len(layers))


def _columns(gradients: Gradients | None, layer: PrunableLayer) -> dict[str, Tensor]:
    return {} if gradients is None else {"grad_sq": gradients.grad_sq(layer)}


if __name__ == "__main__":
    main(run)
