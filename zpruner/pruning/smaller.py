"""Structures of a model in memory: what is chosen, and the model made smaller in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from zpruner.calibration import BlockDistances, expert_contributions
from zpruner.errors import MissingStatisticError
from zpruner.execution import WholeRunner
from zpruner.model import Inventory, PrunableLayer
from zpruner.patterns import StructuredPattern
from zpruner.pruning.composition import Composition
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.pruning.structured import Read, StructureChoice, look
from zpruner.structures import cut, find_couplings
from zpruner.types import Mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def choose_in_memory(
    model: PreTrainedModel,
    inventory: Inventory,
    composition: Composition,
    pattern: StructuredPattern,
    read: Read,
    windows: Tensor | None,
    batch_size: int,
) -> StructureChoice:
    """Return what a pattern removes from a model in memory, and which of its blocks stay.

    Args:
        model: unpruned.
        inventory: of the model.
        composition: what ranks structures.
        pattern: what goes.
        read: gives a layer's weight and the statistics of its input.
        windows: of the calibration, int (windows, seqlen).
        batch_size: windows per call.

    Raises:
        InvalidPatternError: the model has no such structures, or too few.
    """
    plan = StructurePlan.of(pattern, find_couplings(model, inventory.blocks), inventory.layers)

    runner = WholeRunner(model)

    def seen() -> Tensor:
        if windows is None:
            raise MissingStatisticError(
                "structures", "a calibration without its windows", "one that has them", "Calibrate again."
            )
        return windows

    def scores(layer: PrunableLayer) -> Tensor:
        return composition.score(*read(layer)).values

    @cache
    def blocks() -> BlockDistances:
        return BlockDistances(runner, inventory, seen(), batch_size)

    def distances(keep: Tensor) -> Tensor:
        return blocks()(keep)

    def contributions(mixtures: Mapping[str, int]) -> Mapping[str, Tensor]:
        return expert_contributions(runner, mixtures, seen(), batch_size)

    return look(plan, composition, read, scores, distances, contributions)


def cut_in_place(model: PreTrainedModel, choice: StructureChoice, masks: Iterable[Mask]) -> None:
    """Make a pruned model one without the structures that went.

    Args:
        model: with the weights that `masks` leave.
        choice: what went.
        masks: of every layer.
    """
    keep = {mask.layer: mask.keep for mask in masks}
    smaller = cut(model, choice.plan.couplings, choice.plan.kept_of(lambda layer: keep[layer.name]))
    for name, child in smaller.named_children():
        setattr(model, name, child)
    model.config = smaller.config


@contextmanager
def cut_undone(model: PreTrainedModel) -> Iterator[None]:
    """Put the modules and the config that a model has now back at the end; their weights stay as they are then."""
    children, config = dict(model.named_children()), model.config
    try:
        yield
    finally:
        for name, child in children.items():
            setattr(model, name, child)
        model.config = config
