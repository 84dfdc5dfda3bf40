"""Whether a model has what patterns remove: told before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zpruner.errors import InvalidPatternError
from zpruner.model import Inventory
from zpruner.patterns import Pattern, SparsityPattern, StructuredPattern
from zpruner.pruning.composition import Composition
from zpruner.pruning.permuting import movable
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.structures import find_couplings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_fit(patterns: Mapping[str, Pattern], model: PreTrainedModel, inventory: Inventory) -> dict[str, str]:
    """Raise unless every pattern fits a model; return what stays of those that remove structures, in words, by name.

    Args:
        patterns: what is removed, by what messages call it.
        model: in memory, or empty.
        inventory: of the model.

    Raises:
        InvalidPatternError: a width that M of N:M does not divide; structures that the model lacks, or has too few of.
    """
    structured = any(isinstance(pattern, StructuredPattern) for pattern in patterns.values())
    couplings = find_couplings(model, inventory.blocks) if structured else None
    stays = {}
    for name, pattern in patterns.items():
        try:
            if isinstance(pattern, StructuredPattern):
                assert couplings is not None
                stays[name] = StructurePlan.of(pattern, couplings, inventory.layers).words
                continue
            for layer in inventory.layers:
                pattern.check_width(layer.in_features, layer.name)
        except InvalidPatternError as error:
            where = f"{name}: {error.where}"
            raise InvalidPatternError(where, error.got, error.expected, error.action) from None
    return stays


def check_moved(
    compositions: Mapping[str, Composition],
    patterns: Mapping[str, Pattern],
    model: PreTrainedModel,
    inventory: Inventory,
) -> None:
    """Raise unless a model computes the same with what compositions put into another order for a pattern.

    Args:
        compositions: by what messages call them.
        patterns: what is removed, by what messages call it.
        model: in memory, or empty.
        inventory: of the model.

    Raises:
        InvalidPatternError: nothing of a kind may move, or M does not divide how many.
    """
    for label, composition in compositions.items():
        for name, pattern in patterns.items():
            if isinstance(pattern, SparsityPattern) and (moved := composition.moved(pattern)):
                try:
                    movable(model, inventory, moved, pattern)
                except InvalidPatternError as error:
                    where = f"{label} with {name}: {error.where}"
                    raise InvalidPatternError(where, error.got, error.expected, error.action) from None
