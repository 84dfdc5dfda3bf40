"""Sequential pruning: each block is measured with the earlier blocks already pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from zpruner.calibrate import MIN_EXPERT_TOKENS, BlockReplay, Collection
from zpruner.composition import Composition
from zpruner.masks import outlier_saliency
from zpruner.model import Inventory, PrunableLayer, Runner, get_weight, set_weight
from zpruner.types import LayerStats, Mask, SparsityPattern, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class PrunedBlock:
    """One block of sequential pruning: statistics, and of every layer the mask, the new and the dense weight.

    Layers that an interrupted run had finished are left out.
    """

    block: int
    collection: Collection
    layers: Mapping[str, tuple[Mask, Tensor]]
    dense: Mapping[str, Tensor]


def prune_blocks(
    model: PreTrainedModel,
    inventory: Inventory,
    windows: Tensor,
    composition: Composition,
    patterns: Mapping[str, SparsityPattern],
    *,
    batch_size: int,
    gram: bool = False,
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    finished: Callable[[str], Tensor | None] = lambda _: None,
    measured: Callable[[Collection], None] = lambda _: None,
    solved: Callable[[Mask, Tensor], None] = lambda *_: None,
    runner: Runner | None = None,
    gradient: Callable[[str], Tensor | None] = lambda _: None,
) -> Iterator[PrunedBlock]:
    """Prune a model in memory block after block; yields each block when its weights are in place.

    All layers of a block are measured together, before any of them is pruned; then the block runs once more, so
    that the next one sees what the pruned block puts out.

    Args:
        model: its weights are overwritten.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        composition: what is done to every layer.
        patterns: layer name -> pattern.
        batch_size: windows per call.
        gram: collect Gram matrices even where the composition needs none.
        min_expert_tokens: see `zpruner.calibrate.fill_experts`.
        finished: given a layer's name, the weight (out, in) that an interrupted run gave it, or None. A block all of
            whose layers are finished is only run, and not yielded.
        measured: called with the statistics of a block before its layers are pruned.
        solved: called with the mask and the new weight of every layer as soon as they are known.
        runner: of `model`, where its weights are read block by block; what is pruned is then only yielded.
        gradient: given a layer's name, its grad_sq, float32 (out, in), in the unpruned model; None where the
            composition needs none.
    """
    correcting = composition.correction is not None
    gram = gram or Stat.GRAM in composition.needs
    replay = BlockReplay(model, inventory, windows, batch_size, correcting, runner)

    def prune_block(block: int) -> PrunedBlock | None:
        layers = [layer for layer in inventory.layers if layer.block == block]
        known, fresh = {layer.name: finished(layer.name) for layer in layers}, None
        with replay.holding(block):
            if any(weight is None for weight in known.values()):
                collection = replay.measure(block, gram, min_expert_tokens)
                measured(collection)
                results, dense = {}, {}
                for layer in layers:
                    if known[layer.name] is not None:
                        continue
                    dense[layer.name] = get_weight(model, layer).clone()
                    stats = collection.stats(layer.name)
                    if (grad_sq := gradient(layer.name)) is not None:
                        stats = replace(stats, grad_sq=grad_sq.to(dense[layer.name].device))
                    weight = composition.correct(dense[layer.name], stats)
                    pattern = patterns[layer.name]
                    mask = composition.mask(composition.score(weight, stats, pattern), weight, stats, pattern)
                    known[layer.name] = pruned = composition.apply(weight, mask, stats)
                    results[layer.name] = (mask, pruned)
                    solved(mask, pruned)
                fresh = PrunedBlock(block, collection, results, dense)
            else:
                replay.advance_dense(block)
            for layer in layers:
                if (new := known[layer.name]) is not None:
                    set_weight(model, layer, new)
            if block + 1 < inventory.n_blocks:
                replay.advance(block)
        return fresh

    for block in range(inventory.n_blocks):
        fresh = prune_block(block)
        if fresh is not None:
            yield fresh
        del fresh  # before the next block is measured: two would not fit where one does


def layer_patterns(
    composition: Composition,
    pattern: SparsityPattern,
    inventory: Inventory,
    dense: Callable[[PrunableLayer], tuple[Tensor, LayerStats]],
) -> dict[str, SparsityPattern]:
    """Return every layer's pattern: the same, or what the composition's allocation gives it.

    Args:
        composition: its allocation and comparison group count.
        pattern: of the whole model.
        inventory: of the model.
        dense: given a layer, returns its unpruned weight (out, in) and statistics of the unpruned model.

    Raises:
        InvalidPatternError: a width that M of N:M does not divide; N:M with an allocation.
        InvalidSettingError: an allocation that cannot be met.
    """
    layers = {layer.name: layer for layer in inventory.layers}
    for layer in inventory.layers:
        pattern.check_width(layer.in_features, layer.name)
    if composition.allocation is None:
        return dict.fromkeys(layers, pattern)
    return composition.allocation.patterns(
        pattern,
        composition.group,
        {name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
        {name: layer.block for name, layer in layers.items()},
        lambda name: outlier_saliency(*dense(layers[name])),
    )
