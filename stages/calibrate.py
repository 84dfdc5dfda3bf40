"""Calibrate: run the token windows through the unpruned model and store the statistics of every layer's input."""

from __future__ import annotations

from pathlib import Path

from stages._project import Project, Root, main
from zpruner.calibrate import Snapshots, check_complete, collect, finish_activations, read_windows, write_inputs
from zpruner.model import Checkpoint, load_model, take_inventory
from zpruner.progress import progress
from zpruner.store import Provenance, artifact_writer


def run(root: Root = Path(), snapshot_seconds: float = 30.0) -> None:
    """Write data/activations/dense.

    Args:
        root: the project folder.
        snapshot_seconds: how often an unfinished collection is saved.
    """
    project = Project.open(root)
    settings, model_settings = project.params.calibration, project.params.model
    dense = Checkpoint(project.dense)
    dense.verify_all()
    windows, calibration_hash = read_windows(project.tokens("calibration"))
    provenance = Provenance(
        model=dense.model,
        model_hash=dense.model_hash,
        calibration_hash=calibration_hash,
        dtype=str(dense.manifest["dtype"]),
        windows=windows.shape[0],
        tokens=windows.numel(),
    )
    work = project.work(
        "calibrate",
        provenance=repr(provenance),
        batch_size=settings.batch_size,
        gram=settings.gram,
        blocks=model_settings.blocks,
        ignore=model_settings.ignore,
    )
    with artifact_writer(work, "activations", provenance) as writer:
        model = load_model(
            project.dense, device=model_settings.device, trust_remote_code=model_settings.trust_remote_code
        )
        inventory = take_inventory(model, model_settings.blocks, model_settings.ignore)
        snapshots = Snapshots(work, snapshot_seconds)
        collection = snapshots.restore(model.device)
        batches = collect(model, inventory, windows, collection, gram=settings.gram, batch_size=settings.batch_size)
        total = -(-windows.shape[0] // settings.batch_size)
        done = collection.windows // settings.batch_size
        for _ in progress(batches, "calibrate", total, "batch", done):
            snapshots.save(collection)
        check_complete(inventory, collection)
        write_inputs(writer, collection)
        finish_activations(writer, project.activations, inventory)
        project.write_cost("calibrate", seconds=work.seconds, layers=len(inventory.layers), windows=windows.shape[0])


if __name__ == "__main__":
    main(run)
