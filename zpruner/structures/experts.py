"""Experts of mixtures: which number of a config counts them, and what of the model belongs to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from zpruner.model.layers import PrunableLayer
from zpruner.patterns import StructureKind
from zpruner.structures.coupling import Coupling, Slices
from zpruner.structures.probe import Probe
from zpruner.structures.sizes import Shapes, Size, Where, empty_with, numbers, resized, shapes_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def find_experts(
    config: PretrainedConfig, probe: Probe, layers: Iterable[PrunableLayer], before: Shapes
) -> Iterator[tuple[Size, list[Coupling]]]:
    """Yield numbers that count experts, and the mixtures in which they do: a coupling for each stack of experts.

    Args:
        config: of the model.
        probe: of the model.
        layers: that can be pruned.
        before: shapes of the model's parameters.
    """
    stacks = {layer.tensor: layer.parts for layer in layers if layer.parts > 1 and len(before[layer.tensor]) > 2}
    for where, value in numbers(config).items():
        if isinstance(value, int) and value in stacks.values():
            smaller = empty_with(config, {where: value - 1})
            found = None if smaller is None else resized(before, shapes_of(smaller))
            if found and all(long - short == 1 for long, short in found.values()):
                couplings = list(_couplings(found, stacks, value, where, probe))
                if couplings:
                    yield Size({where: value}), couplings


def _couplings(
    found: Mapping[tuple[str, int], tuple[int, int]], stacks: Mapping[str, int], count: int, where: Where, probe: Probe
) -> Iterator[Coupling]:
    """Yield the mixtures of which each loses one expert; none where more than that is resized."""
    blocks: dict[int, list[tuple[str, int]]] = {}
    for name, axis in found:
        block = probe.block_of(name)
        if block is None:
            return
        blocks.setdefault(block, []).append((name, axis))
    index = torch.arange(count)[:, None]
    for block, places in blocks.items():
        holders = {name.rpartition(".")[0] for name, axis in places if axis == 0 and stacks.get(name) == count}
        if len(holders) != 1:
            return
        slices = tuple(Slices(name, axis, index) for name, axis in places)
        name = ".".join(where)
        yield Coupling(StructureKind.EXPERTS, holders.pop(), block, count, name, 1, slices, ())
