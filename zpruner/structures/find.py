"""What can be cut out of a model: structures that a config can count, and without which the model proves equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.errors import ZprunerError
from zpruner.model.inventory import take_inventory
from zpruner.model.layers import Inventory
from zpruner.patterns import StructureKind
from zpruner.structures.channels import Channels, find_channels
from zpruner.structures.coupling import Coupling, Couplings
from zpruner.structures.cut import cut_config, renamed
from zpruner.structures.depth import depths
from zpruner.structures.equality import same_when_cut, same_without
from zpruner.structures.experts import find_experts
from zpruner.structures.probe import Probe
from zpruner.structures.sizes import Size, Where, changed, empty_of, empty_with, shapes_of
from zpruner.structures.widths import Resized, Sizes, sizes_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def find_couplings(model: PreTrainedModel, blocks: str | None = None, ignore: Iterable[str] = ()) -> Couplings:
    """Return what can be cut out of a model.

    Only its config is read: the weights may lie anywhere. The same model without them is run on a few random tokens,
    with random weights that the blocks share, so that it takes the memory of one block of each kind.

    Args:
        model: any causal language model; meta tensors will do.
        blocks: path of the decoder blocks where it cannot be found by structure.
        ignore: patterns of layers that stay as they are; what they write or read is not cut.

    Raises:
        ModelStructureError: as `take_inventory`.
    """
    empty = empty_of(model.config)
    inventory = take_inventory(empty, blocks)
    with torch.inference_mode(False), torch.enable_grad():  # gradients are followed, whatever the caller does without
        search = _Search(model.config, empty, inventory, model.dtype)
        widths = list(search.widths())
        found = [*widths, *search.experts(), *search.depth(widths)]
    missing = {kind: search.why_not(kind) for kind in StructureKind}
    staying = _ignored(inventory, take_inventory(empty, blocks, ignore)) if ignore else frozenset()
    for size, couplings in list(found):
        if touched := sorted(name for c in couplings for name in _layers(c, inventory) if name in staying):
            found.remove((size, couplings))
            missing[couplings[0].kind] = f"{touched[0]} under model.ignore"
    every = sorted((c for _, some in found for c in some), key=lambda c: -1 if c.block is None else c.block)
    kinds = {coupling.kind for coupling in every}
    absent = {kind: why for kind, why in missing.items() if kind not in kinds}
    return Couplings(tuple(every), {size.name: size for size, _ in found}, absent)


def _ignored(every: Inventory, left: Inventory) -> frozenset[str]:
    """Return the names of layers that are left out."""
    return frozenset(layer.name for layer in every.layers) - {layer.name for layer in left.layers}


def _layers(coupling: Coupling, inventory: Inventory) -> Iterator[str]:
    """Yield the names of the layers that lose something with a coupling's structures."""
    if coupling.kind is StructureKind.BLOCKS:
        yield from (layer.name for layer in inventory.layers)
    elif coupling.kind is StructureKind.EXPERTS:
        tensors = {slices.tensor for slices in coupling.writes}
        yield from (layer.name for layer in inventory.layers if layer.tensor in tensors)
    else:
        yield from (s.layer.name for s in (*coupling.writes, *coupling.reads) if s.layer is not None)


_ALIGNED = 16
"""Bytes at multiples of which rows must begin in a product with several experts at once."""


class _Search:
    """Finds the structures of one model.

    Args:
        config: of the model.
        empty: the model; its buffers are computed.
        inventory: of the model.
        dtype: of its weights.
    """

    def __init__(
        self, config: PretrainedConfig, empty: PreTrainedModel, inventory: Inventory, dtype: torch.dtype
    ) -> None:
        self.config, self.inventory, self.dtype = config, inventory, dtype
        self.before = shapes_of(empty)
        self.probe = Probe.of(empty, inventory.blocks)
        self.weights = self.probe.random_weights(inventory.layers, 0)
        self.channels = find_channels(self.probe, self.weights, inventory.layers, sizes_of(config))
        self._counted: set[StructureKind] = set()

    def widths(self) -> Iterator[tuple[Size, list[Coupling]]]:
        """Yield neurons and groups: of every layer's channels, first what single numbers of the config count."""
        sizes = Sizes(self.config, self.before, self.channels)
        done: set[str] = set()
        counts = sorted({each.count for each in self.channels}, reverse=True)
        for look in (sizes.alone, sizes.together):
            for count in counts:
                left = {each.layer.name for each in self.channels if each.count == count} - done
                for resized in look(count) if left else ():
                    names = {each.layer.name for each in resized.channels}
                    couplings = self._couplings(resized)
                    self._counted |= {coupling.kind for coupling in couplings}
                    if not names & done and resized.units > 1 and self._proved(resized, couplings):
                        done |= names
                        yield resized.size, couplings
                        if left <= done:
                            break

    def experts(self) -> Iterator[tuple[Size, list[Coupling]]]:
        """Yield experts."""
        yield from find_experts(self.config, self.probe, self.weights, self.inventory.layers, self.before)

    def depth(self, widths: Iterable[tuple[Size, list[Coupling]]]) -> Iterator[tuple[Size, list[Coupling]]]:
        """Yield blocks: of each signature the first and the last are tried, with which all of it can go or not.

        Args:
            widths: that were found: with few of each, all blocks are run in little time.
        """
        path, count = self.probe.blocks, self.inventory.n_blocks
        owners = self.probe.owners()
        probe, config = self.probe, self.config
        values: dict[Where, Any] = {}
        for size, some in widths:
            few = _ALIGNED if some[0].kind is StructureKind.NEURONS else 1
            values |= size.at(min(few, size.units), size.units)
        if values and (narrow := empty_with(config, values)) is not None:
            probe, config = Probe.of(narrow, path), changed(config, values)
        weights = self.weights if probe is self.probe else probe.random_weights(self.inventory.layers, 0)
        for size in depths(config, count):
            alone = Coupling(StructureKind.BLOCKS, path, None, count, size.name, 1, (), (), entries=path)
            couplings = Couplings((alone,), {size.name: size})
            removable = torch.zeros(count, dtype=torch.bool)
            for owner in dict.fromkeys(owners):
                mine = torch.tensor([first == owner for first in owners])
                ends = {owner, int(mine.nonzero()[-1])}
                removable |= mine & all(_goes(config, probe, weights, couplings, path, index) for index in ends)
            if removable.any():
                yield size, [replace(alone, removable=None if removable.all() else removable)]
                return

    def why_not(self, kind: StructureKind) -> str:
        """Return why there is nothing of a kind to cut, if so."""
        if kind in self._counted:
            return f"a model that computes something else without some of its {kind.value}"
        match kind:
            case StructureKind.EXPERTS:
                mixed = any(layer.parts > 1 for layer in self.inventory.layers)
                return "experts that the config does not count by themselves" if mixed else "one MLP for every token"
            case StructureKind.BLOCKS:
                return "blocks of which the config describes each by its place"
            case StructureKind.NEURONS | StructureKind.GROUPS:
                if any(_kind(each) is kind for each in self.channels):
                    return f"a config that has no number for its {kind.value} alone"
                return f"{kind.value} that depend on each other, or that no layer reads apart"

    def _couplings(self, resized: Resized) -> list[Coupling]:
        """Return the couplings of a size: of experts in steps with which transformers can run them."""
        aligned = _ALIGNED // self.dtype.itemsize
        stacks = [each.count for each in resized.channels if each.layer.parts > 1]
        units = resized.units
        if all(count % aligned == 0 for count in stacks):
            units = math.gcd(units, *(count // aligned for count in stacks))
        return [
            Coupling(
                _kind(each),
                each.layer.name,
                each.layer.block,
                each.count,
                resized.size.name,
                each.count // units,
                each.writes,
                each.reads,
            )
            for each in resized.channels
        ]

    def _proved(self, resized: Resized, couplings: list[Coupling]) -> bool:
        """Return whether the model without half of the structures computes what it does when nothing reads them."""
        kept = round(resized.units * resized.share)
        smaller = empty_with(self.config, resized.size.at(kept, resized.units))
        return smaller is not None and all(
            same_when_cut(
                self.probe, smaller, self.weights, couplings, self._chosen(couplings, kept, resized.units, choose)
            )
            for choose in _CHOICES
        )

    def _chosen(
        self, couplings: list[Coupling], kept: int, units: int, choose: Callable[[int, int], Tensor]
    ) -> Mapping[str, Tensor]:
        """Return structures to keep, the same in all blocks of one signature and in all experts of a stack."""
        owners = self.probe.owners()
        made: dict[str, Tensor] = {}
        keep = {}
        for coupling in couplings:
            assert coupling.block is not None
            source = self.probe.moved(coupling.reads[0].tensor, owners[coupling.block])
            if source not in made:
                chosen = torch.zeros(coupling.count, dtype=torch.bool)
                chosen[choose(coupling.count, len(made))[: coupling.count * kept // units]] = True
                made[source] = chosen
            keep[coupling.name] = made[source]
        return keep


def _ends(bit: int, count: int, number: int) -> Tensor:
    return torch.arange(count).flip(0) if number >> bit & 1 else torch.arange(count)


def _anywhere(count: int, number: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


_CHOICES: tuple[Callable[[int, int], Tensor], ...] = (*(partial(_ends, bit) for bit in range(3)), _anywhere)
"""Orders in which structures are kept to prove that any may go. They differ between any two of the first couplings, so
that structures which two blocks share do not pass: from one end or the other, and scattered."""


def _goes(
    config: PretrainedConfig, probe: Probe, weights: Mapping[str, Tensor], couplings: Couplings, path: str, index: int
) -> bool:
    """Return whether a block can go, and the others still compute what they did."""
    kept = torch.ones(couplings.named(path).count, dtype=torch.bool)
    kept[index] = False
    keep = {path: kept}
    try:
        smaller = empty_of(cut_config(config, couplings, keep))
    except ZprunerError:
        return False
    names = {name: new for name in weights if (new := renamed(name, couplings, keep)) is not None}
    return same_without(probe, smaller, weights, kept, names)


def _kind(channels: Channels) -> StructureKind:
    return StructureKind.NEURONS if channels.count == channels.layer.in_features else StructureKind.GROUPS
