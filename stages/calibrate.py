"""Calibrate: run the token windows through the unpruned model and store the statistics of every layer's input."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path

from torch import Tensor

from stages._project import Project, Root, main, say
from zpruner.artifacts.store import ArtifactWriter, artifact_writer
from zpruner.calibration import (
    EFFECTS,
    Collection,
    Snapshots,
    check_reached,
    collect,
    collect_by_block,
    collect_effects,
    fill_experts,
    finish_activations,
    warning,
    write_effects,
    write_inputs,
)
from zpruner.execution import Runner, choose, open_runner
from zpruner.model import Inventory, get_weight, take_inventory
from zpruner.runtime.progress import counter, progress
from zpruner.settings.texts import CalibrationSettings
from zpruner.types import Stat


def run(root: Root = Path(), snapshot_seconds: float = 30.0) -> None:
    """Write data/activations/dense.

    Args:
        root: the project folder.
        snapshot_seconds: how often an unfinished collection is saved.
    """
    project = Project.open(root)
    settings, model_settings = project.params.calibration, project.params.model
    dense = project.open_dense()
    windows, provenance = project.open_calibration(dense)
    work = project.work("calibrate", provenance=repr(provenance))
    wanted = frozenset(map(Stat, project.planned("calibrate").settings["statistics"]))
    choice = choose(project.params.machine, dense.tensor_bytes * (3 if Stat.GRAM in wanted else 1))
    say(f"calibrate: {choice.words}")
    with artifact_writer(work, "activations", provenance) as writer:
        runner = open_runner(dense, model_settings, project.params.machine, choice.streamed, work.scratch / "hidden")
        inventory = take_inventory(runner.model, model_settings.blocks, model_settings.ignore)
        if choice.streamed:
            _by_block(writer, runner, inventory, windows, settings, wanted)
        else:
            _by_batch(writer, runner, inventory, windows, settings, wanted, snapshot_seconds)
        if Stat.EFFECT in wanted and work.done(EFFECTS) is None:
            write_effects(writer, inventory, collect_effects(runner, inventory, windows))
        finish_activations(writer, project.activations, inventory)
        project.write_cost(
            "calibrate",
            seconds=work.seconds,
            layers=len(inventory.layers),
            windows=windows.shape[0],
            streamed=choice.streamed,
        )


def _by_batch(
    writer: ArtifactWriter,
    runner: Runner,
    inventory: Inventory,
    windows: Tensor,
    settings: CalibrationSettings,
    stats: Set[Stat],
    snapshot_seconds: float,
) -> None:
    """Run batch after batch through the model in memory; the statistics of all layers are summed side by side."""
    snapshots = Snapshots(writer.work, snapshot_seconds)
    collection = snapshots.restore(runner.device)
    batches = collect(runner.model, inventory, windows, collection, stats=stats, batch_size=settings.batch_size)
    total = -(-windows.shape[0] // settings.batch_size)
    done = collection.windows // settings.batch_size
    for _ in progress(batches, "calibrate", total, "batch", done):
        snapshots.save(collection)
    _complete(inventory, collection, settings)
    write_inputs(writer, collection, _weights(runner, inventory))


def _by_block(
    writer: ArtifactWriter,
    runner: Runner,
    inventory: Inventory,
    windows: Tensor,
    settings: CalibrationSettings,
    stats: Set[Stat],
) -> None:
    """Run all batches block after block; what is finished of a block is on disk before the next one is read."""
    work, weight = writer.work, _weights(runner, inventory)
    with counter("calibrate, block by block", inventory.n_blocks, "block") as step:

        def known(block: int) -> bool:
            return work.done(f"block-{block}") is not None

        def done(block: int, collection: Collection) -> None:
            if not known(block):
                _complete(inventory, collection, settings, block)
                write_inputs(writer, collection, weight)
                writer.drain()
                work.record(f"block-{block}", {})
            step()

        collect_by_block(runner, inventory, windows, done, stats=stats, batch_size=settings.batch_size, skip=known)


def _weights(runner: Runner, inventory: Inventory) -> Callable[[str], Tensor]:
    """Return what gives a layer's weight by the layer's name, where the model has it in memory."""
    layers = {layer.name: layer for layer in inventory.layers}
    return lambda name: get_weight(runner.model, layers[name])


def _complete(
    inventory: Inventory, collection: Collection, settings: CalibrationSettings, block: int | None = None
) -> None:
    """Fill up the statistics of experts that met few tokens (of a block, where it is given), and check the rest."""
    fill_experts(inventory, collection, settings.min_expert_tokens)
    if text := warning(collection.few, inventory, settings.min_expert_tokens):
        say(f"warning: {text}")
    check_reached(inventory, collection.owner, block)


if __name__ == "__main__":
    main(run)
