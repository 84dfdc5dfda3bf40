"""Gradients: the squared gradient of every prunable weight, summed over windows, where a listed method needs it."""

from __future__ import annotations

from pathlib import Path

from stages._project import Project, Root, main
from zpruner.artifacts.store import ArtifactReader, Provenance, artifact_writer
from zpruner.calibration import Gradients, GradientSnapshots, collect_gradients
from zpruner.checkpoint import Checkpoint
from zpruner.errors import InvalidSettingError
from zpruner.execution import load_whole, memory_limit
from zpruner.model import empty_model, take_inventory
from zpruner.runtime.progress import progress
from zpruner.settings.params import MachineSettings, ModelSettings


def run(root: Root = Path(), snapshot_seconds: float = 30.0, search: bool = False) -> None:
    """Write data/gradients; an index without files where no listed method needs gradients.

    Args:
        root: the project folder.
        snapshot_seconds: how often an unfinished collection is saved.
        search: write data/search/gradients instead, which the search needs where its formulas may mention G;
            data/gradients is copied where it has them.
    """
    project = Project.open(root)
    labels = ("gradients", "search") if search else ("gradients",)
    out = project.search / "gradients" if search else project.gradients
    if project.planned(*labels).settings["wanted"]:
        collect(project, out, labels, snapshot_seconds)
        return
    work = project.work(*labels)
    with artifact_writer(work, "gradients", Provenance()) as writer:
        writer.finish(out, layers=[])
        project.write_cost(*labels, seconds=0.0, layers=0)


def collect(project: Project, out: Path, labels: tuple[str, ...], snapshot_seconds: float) -> None:
    """Write gradients of the dense model over the calibration windows to `out`, and what that cost under `labels`."""
    settings, machine = project.params.model, project.params.machine
    dense = project.open_dense()
    windows, provenance = project.open_calibration(dense)
    found = None if out == project.gradients else _collected(project, provenance)
    if found is None:
        _check_room(dense, settings, machine)
    work = project.work(*labels, provenance=repr(provenance))
    with artifact_writer(work, "gradients", provenance) as writer:
        if found is not None:
            for layer in found.layers:
                writer.write(layer.name, {"grad_sq": found.grad_sq(layer)})
            writer.finish(out, layers=[layer.to_json() for layer in found.layers])
            project.write_cost(*labels, seconds=work.seconds, layers=len(found.layers))
            return
        model = load_whole(dense, machine.device, trust_remote_code=settings.trust_remote_code)
        inventory = take_inventory(model, settings.blocks, settings.ignore)
        snapshots = GradientSnapshots(work, snapshot_seconds)
        sums = snapshots.restore(model.device)
        steps = collect_gradients(model, inventory, windows, sums)
        for _ in progress(steps, "gradients", windows.shape[0], "window", sums.windows):
            snapshots.save(sums)
        for name, grad_sq in sums.by_layer(inventory).items():
            if work.done(name) is None:
                writer.write(name, {"grad_sq": grad_sq})
        writer.finish(out, layers=[layer.to_json() for layer in inventory.layers])
        project.write_cost(*labels, seconds=work.seconds, layers=len(inventory.layers), windows=windows.shape[0])


def _check_room(dense: Checkpoint, settings: ModelSettings, machine: MachineSettings) -> None:
    """Raise InvalidSettingError where the whole model and the sums of its squared gradients find no room."""
    if machine.streaming == "always":
        raise InvalidSettingError(
            "machine.streaming",
            "'always' with a method that needs gradients",
            "'auto' or 'never': a backward pass needs the whole model in memory",
            "Change it in params.yaml, or leave out the methods that need gradients.",
        )
    model = empty_model(dense.folder, trust_remote_code=settings.trust_remote_code)
    layers = take_inventory(model, settings.blocks, settings.ignore).layers
    sums = 4 * sum(layer.out_features * layer.in_features for layer in layers)
    needed, available = dense.tensor_bytes + sums, memory_limit(machine)
    if needed > available:
        raise InvalidSettingError(
            "a method that needs gradients",
            f"{needed / 1e9:.2f} GB for the model and a float32 sum for every prunable weight, of "
            f"{available / 1e9:.2f} GB available",
            "room for both: a backward pass needs the whole model",
            "Leave out the methods that need gradients, set machine.device: cpu if that has more memory, or raise "
            "machine.memory where it is set.",
        )


def _collected(project: Project, provenance: Provenance) -> Gradients | None:
    """Return data/gradients where it holds any."""
    filled = ArtifactReader(project.gradients, "gradients").files
    return Gradients(project.gradients, provenance) if filled else None


if __name__ == "__main__":
    main(run)
