"""Experts of a mixture that met too few calibration tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpruner.model import Inventory

if TYPE_CHECKING:
    from zpruner.calibration.accumulate import InputAccumulator
    from zpruner.calibration.collection import Collection

MIN_EXPERT_TOKENS = 128
"""Default of calibration.min_expert_tokens: a second moment of 128 tokens is within about 12 % (one deviation)."""


def fill_experts(inventory: Inventory, collection: Collection, min_tokens: int = MIN_EXPERT_TOKENS) -> None:
    """Fill up the statistics of experts that met fewer than `min_tokens` tokens, and note how many they met.

    An expert that met t < T tokens gets T - t tokens' worth of the average over all experts of its mixture: its own
    tokens count as much as they can, and the estimate goes over into its own at T. The rest of the weight lies on what
    the experts have in common: of the hidden states that all of them read, the moments in the same channels; of an
    intermediate state, whose channels mean something else in each expert, little but its size, so that scores there
    tend to magnitude. (Such shrinkage towards a pooled estimate: Ledoit and Wolf 2004.) T is at most the number of
    tokens that there are.

    Args:
        inventory: of the model.
        collection: complete; accumulators of experts are changed, and added for experts that met no token.
        min_tokens: T.
    """
    most: dict[int, int] = {}  # block -> tokens that passed it
    pools: dict[int, dict[str, list[str]]] = {}
    for layer in inventory.layers:
        sums = collection.accumulators.get(layer.name)
        most[layer.block] = max(most.get(layer.block, 0), 0 if sums is None else sums.tokens)
        if layer.pool is not None:
            pools.setdefault(layer.block, {}).setdefault(layer.pool, []).append(layer.name)
    for block, found in pools.items():
        _fill_block(found, collection, min(min_tokens, most[block]))


def _fill_block(pools: dict[str, list[str]], collection: Collection, needed: int) -> None:
    """Fill up the experts of a block's mixtures: pool -> layers."""
    leaders = {pool: _leaders(names, pools, collection) for pool, names in pools.items()}
    # Sums are shared, so that every average comes before the first change.
    averages = {pool: _average(names, collection, needed) for pool, names in pools.items() if leaders[pool] is None}
    for pool, average in averages.items():
        for name in pools[pool]:
            if average is not None and collection.owner.setdefault(name, name) == name:
                sums = collection.accumulators.setdefault(name, average.empty_like())
                if sums.tokens < needed:
                    collection.few[name] = sums.tokens
                    sums.blend(average, (needed - sums.tokens) / average.tokens)
    for pool, names in pools.items():
        for name, leader in zip(names, leaders[pool] or names, strict=True):
            if leader in collection.owner:
                owner = collection.owner.setdefault(name, collection.owner[leader])
                if owner in collection.few:
                    collection.few[name] = collection.few[owner]


def _leaders(names: list[str], pools: dict[str, list[str]], collection: Collection) -> list[str] | None:
    """Return, expert by expert, the layers whose input the layers `names` share; None where they have their own."""
    owners = {collection.owner[name] for name in names if name in collection.owner}
    shared = next((found for found in pools.values() if owners and owners <= set(found)), names)
    return None if shared is names or len(shared) != len(names) else shared


def _average(names: list[str], collection: Collection, needed: int) -> InputAccumulator | None:
    """Return the sums over all tokens that met one of the experts; None where there are none, or all met enough."""
    known = [collection.accumulators[collection.owner[name]] for name in names if name in collection.owner]
    if not known or (len(known) == len(names) and all(sums.tokens >= needed for sums in known)):
        return None
    everyone = known[0].empty_like()
    for sums in known:
        everyone.blend(sums, 1.0)
    return everyone


def warning(few: dict[str, int], inventory: Inventory, needed: int) -> str | None:
    """Return a sentence about the experts that met too few tokens; None where there are none."""
    if not few:
        return None
    experts = [layer for layer in inventory.layers if layer.pool is not None]
    worst = min(few, key=lambda name: (few[name], name))
    return (
        f"{len(few)} of {len(experts)} weights of experts met fewer than {needed} calibration tokens (the fewest: "
        f"{worst}, {few[worst]}); their statistics are filled up with those of all experts of their mixture "
        "(docs/models.md). More calibration windows help."
    )
