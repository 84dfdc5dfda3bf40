"""Experts of mixtures: which number of a config counts them, and what of the model belongs to each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.model.layers import PrunableLayer
from zpruner.patterns import StructureKind
from zpruner.structures.coupling import Coupling, Slices
from zpruner.structures.equality import same_when_avoided
from zpruner.structures.probe import Probe
from zpruner.structures.sizes import Lengths, Shapes, Size, Where, empty_with, numbers, resized, shapes_of
from zpruner.structures.widths import sizes_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TIMES = 2
"""Other experts go each time."""


def find_experts(
    config: PretrainedConfig,
    probe: Probe,
    weights: Mapping[str, Tensor],
    layers: Iterable[PrunableLayer],
    before: Shapes,
) -> Iterator[tuple[Size, list[Coupling]]]:
    """Yield numbers that count experts, and the mixtures in which they do: a coupling for each stack of experts.

    Args:
        config: of the model.
        probe: of the model.
        weights: of the probe.
        layers: that can be pruned.
        before: shapes of the model's parameters.
    """
    stacks = {layer.tensor: layer.parts for layer in layers if layer.parts > 1 and len(before[layer.tensor]) > 2}
    for where, value in numbers(config).items():
        if isinstance(value, int) and value in stacks.values():
            couplings = _resized(config, probe, stacks, before, where, value)
            for divisions in sorted({1, *(n for n in sizes_of(config) if n < value and value % n == 0)}):
                divided = [replace(coupling, step=divisions, divisions=divisions) for coupling in couplings]
                if divided and _proved(config, probe, weights, Size({where: value}), divided):
                    yield Size({where: value}), divided
                    break


def _resized(
    config: PretrainedConfig, probe: Probe, stacks: Mapping[str, int], before: Shapes, where: Where, count: int
) -> list[Coupling]:
    """Return the mixtures that have fewer experts where a number of the config is smaller; none where more changes."""
    for fewer in (count - 1, count // 2):  # the latter where experts must divide into groups
        smaller = empty_with(config, {where: fewer})
        found = None if smaller is None else resized(before, shapes_of(smaller))
        if found and all(long - short == count - fewer for long, short in found.values()):
            return list(_couplings(found, stacks, count, where, probe))
    return []


def _proved(
    config: PretrainedConfig, probe: Probe, weights: Mapping[str, Tensor], size: Size, couplings: list[Coupling]
) -> bool:
    """Return whether the model without some experts computes what the model does whose router never chooses them."""
    count, divisions = couplings[0].count, couplings[0].divisions
    each = count // divisions
    for number in range(_TIMES):
        gone = torch.arange(divisions) * each + torch.arange(divisions) * number % each  # one of each division
        kept = torch.ones(count, dtype=torch.bool)
        kept[gone] = False
        smaller = empty_with(config, size.at(count - divisions, count))
        keep = {coupling.name: kept for coupling in couplings}
        if each < 2 or smaller is None or not same_when_avoided(probe, smaller, weights, couplings, keep):
            return False
    return True


def _couplings(found: Lengths, stacks: Mapping[str, int], count: int, where: Where, probe: Probe) -> Iterator[Coupling]:
    """Yield the mixtures that lose experts; none where more than that is resized."""
    blocks: dict[int, list[tuple[str, int]]] = {}
    for name, axis in found:
        block = probe.block_of(name)
        if block is None:
            return
        blocks.setdefault(block, []).append((name, axis))
    index = torch.arange(count)[:, None]
    made = []
    for block, places in blocks.items():
        holders = {name.rpartition(".")[0] for name, axis in places if axis == 0 and stacks.get(name) == count}
        if len(holders) != 1:
            return
        slices = tuple(Slices(name, axis, index) for name, axis in places)
        name = ".".join(where)
        made.append(Coupling(StructureKind.EXPERTS, holders.pop(), block, count, name, 1, slices, ()))
    yield from made
