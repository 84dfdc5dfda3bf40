"""Experts of a mixture that met too few calibration tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zpruner.model import Inventory

if TYPE_CHECKING:
    from zpruner.calibrate.dense import Collection

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
    pools: dict[str, list[str]] = {}
    most: dict[int, int] = {}  # block -> tokens that passed it
    block_of: dict[str, int] = {}
    for layer in inventory.layers:
        sums = collection.accumulators.get(layer.name)
        most[layer.block] = max(most.get(layer.block, 0), 0 if sums is None else sums.tokens)
        if layer.pool is not None:
            pools.setdefault(layer.pool, []).append(layer.name)
            block_of[layer.pool] = layer.block
    for pool, names in pools.items():
        leaders = _leaders(names, pools, collection)
        if leaders is None:
            _fill(names, collection, min(min_tokens, most[block_of[pool]]))
            continue
        for name, leader in zip(names, leaders, strict=True):  # their input is another layer's, which has been seen to
            collection.owner.setdefault(name, collection.owner[leader])
            if leader in collection.few:
                collection.few[name] = collection.few[leader]


def _leaders(names: list[str], pools: dict[str, list[str]], collection: Collection) -> list[str] | None:
    """Return, expert by expert, the layers whose input the layers `names` share; None where they have their own."""
    owners = {collection.owner[name] for name in names if name in collection.owner}
    shared = next((found for found in pools.values() if owners and owners <= set(found)), names)
    return None if shared is names or len(shared) != len(names) else shared


def _fill(names: list[str], collection: Collection, needed: int) -> None:
    own = {name: collection.accumulators[name] for name in names if name in collection.accumulators}
    if not own or all(
        name in collection.owner and collection.accumulators[collection.owner[name]].tokens >= needed for name in names
    ):
        return
    like = next(iter(own.values()))
    everyone = like.empty_like()
    for sums in own.values():
        everyone.blend(sums, 1.0)
    for name in names:
        if collection.owner.setdefault(name, name) == name:
            sums = collection.accumulators.setdefault(name, like.empty_like())
            if sums.tokens < needed:
                collection.few[name] = sums.tokens
                sums.blend(everyone, (needed - sums.tokens) / everyone.tokens)


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
