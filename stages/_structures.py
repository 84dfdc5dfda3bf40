"""The structures that a variant's pattern removes."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from stages._project import Project
from zpruner.artifacts.work import Work
from zpruner.calibration import BlockDistances
from zpruner.checkpoint import Checkpoint
from zpruner.execution import choose, open_runner
from zpruner.model import Inventory
from zpruner.model.empty import empty_model
from zpruner.patterns import StructuredPattern
from zpruner.pruning.structured import Distances, StructurePlan
from zpruner.structures import find_couplings


def open_plan(project: Project, dense: Checkpoint, pattern: StructuredPattern, inventory: Inventory) -> StructurePlan:
    """Return what a pattern removes from the model.

    Args:
        project: of the model.
        dense: the unpruned checkpoint.
        pattern: of the variant.
        inventory: of the model.

    Raises:
        InvalidPatternError: the model lacks such structures.
    """
    settings = project.params.model
    model = empty_model(dense.folder, trust_remote_code=settings.trust_remote_code)
    return StructurePlan.of(pattern, find_couplings(model, inventory.blocks), inventory.layers)


def block_distances(project: Project, inventory: Inventory, dense: Checkpoint, work: Work) -> Distances:
    """Return what measures how far blocks turn the hidden state of the calibration text; nothing is opened before.

    Args:
        project: with the calibration text.
        inventory: of the model.
        dense: the unpruned checkpoint.
        work: the open work folder.
    """

    @cache
    def opened() -> BlockDistances:
        params = project.params
        windows, _ = project.open_windows("calibration", dense)
        streamed = choose(params.machine, dense.tensor_bytes).streamed
        runner = open_runner(dense, params.model, params.machine, streamed, work.scratch / "distances")
        return BlockDistances(runner, inventory, windows, params.calibration.batch_size)

    def distances(keep: Tensor) -> Tensor:
        return opened()(keep)

    return distances
