"""The structures that a variant's pattern removes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from torch import Tensor

from stages._project import Project
from zpruner.artifacts.work import Work
from zpruner.calibration import BlockDistances, expert_contributions
from zpruner.checkpoint import Checkpoint
from zpruner.execution import Runner, choose, open_runner
from zpruner.model import Inventory
from zpruner.model.empty import empty_model
from zpruner.patterns import StructuredPattern
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.pruning.structured import Contributions, Distances
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


def measuring(project: Project, inventory: Inventory, dense: Checkpoint, work: Work) -> tuple[Distances, Contributions]:
    """Return what measures blocks and experts on the calibration text; nothing is opened before it is asked for.

    Args:
        project: with the calibration text.
        inventory: of the model.
        dense: the unpruned checkpoint.
        work: the open work folder.
    """
    params = project.params
    batch_size = params.calibration.batch_size

    @cache
    def opened() -> tuple[Runner, Tensor]:
        windows, _ = project.open_windows("calibration", dense)
        streamed = choose(params.machine, dense.tensor_bytes).streamed
        return open_runner(dense, params.model, params.machine, streamed, work.scratch / "looking"), windows

    @cache
    def blocks() -> BlockDistances:
        runner, windows = opened()
        return BlockDistances(runner, inventory, windows, batch_size)

    def distances(keep: Tensor) -> Tensor:
        return blocks()(keep)

    def contributions(mixtures: Mapping[str, int]) -> Mapping[str, Tensor]:
        runner, windows = opened()
        return expert_contributions(runner, mixtures, windows, batch_size)

    return distances, contributions
