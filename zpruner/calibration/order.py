"""The order in which a block's layers are reached: those that wait for nothing of each other belong together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from zpruner.model import PrunableLayer


@dataclass(frozen=True)
class SubModule:
    """Layers of one block that read the same input, or are experts of one mixture.

    `reads` has how often each is multiplied in a forward pass; None where that depends on the tokens. `added` has how
    often what each puts out is added to something else.
    """

    layers: tuple[PrunableLayer, ...]
    reads: Mapping[str, int] | None
    added: Mapping[str, int] = field(default_factory=dict)


def submodules(
    layers: Iterable[PrunableLayer], reads: Sequence[tuple[str, object]], added: Sequence[str] = ()
) -> list[SubModule]:
    """Return the sub-modules that a block's layers form, in the order in which the first layer of each is reached.

    Args:
        layers: of the block.
        reads: every product of a forward pass in order: the layer's name, and something that is equal where two layers
            read the same input.
        added: the layer's name at each sum of what it puts out and something else.
    """
    group: dict[object, object] = {}  # a layer's name, an input or a pool of experts -> what stands for its group

    def root(key: object) -> object:
        while (above := group.setdefault(key, key)) != key:
            key = above
        return key

    by_name = {layer.name: layer for layer in layers}
    for name, read in reads:
        group[root(("input", read))] = root(name)
    for layer in by_name.values():
        if layer.pool is not None:
            group[root(("pool", layer.pool))] = root(layer.name)
    reached = [*dict.fromkeys(name for name, _ in reads), *by_name]
    found: dict[object, dict[str, PrunableLayer]] = {}
    for name in reached:
        found.setdefault(root(name), {})[name] = by_name[name]
    times, sums = Counter(name for name, _ in reads), Counter(added)
    return [
        SubModule(
            tuple(layer for layer in by_name.values() if layer.name in names),
            None if any(layer.pool is not None for layer in names.values()) else {name: times[name] for name in names},
            {name: sums[name] for name in names if sums[name]},
        )
        for names in found.values()
    ]


def together(parts: Sequence[SubModule], joined: Iterable[Set[str]]) -> list[SubModule]:
    """Return sub-modules in order, those that share one of the sets of layer names `joined` made one.

    One that is made of several stands where the first of them stood.
    """
    left = list(parts)
    for names in joined:
        same = [part for part in left if names & {layer.name for layer in part.layers}]
        if len(same) > 1:
            layers = tuple(layer for part in same for layer in part.layers)
            added = {name: count for part in same for name, count in part.added.items()}
            left[left.index(same[0])] = SubModule(layers, _reads(same), added)
            left = [part for part in left if part not in same[1:]]
    return left


def _reads(parts: Iterable[SubModule]) -> dict[str, int] | None:
    found: dict[str, int] = {}
    for part in parts:
        if part.reads is None:
            return None
        found |= part.reads
    return found
