"""Sequential pruning: each block is measured with the earlier blocks already pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from zpruner.calibration import MIN_EXPERT_TOKENS, BlockReplay, Collection
from zpruner.execution import Runner
from zpruner.model import Inventory, PrunableLayer, get_weight, set_weight
from zpruner.pruning.composition import Composition
from zpruner.pruning.tuned import BlockTuning
from zpruner.quantization import QuantizedLayer
from zpruner.tuning import KeptWeights
from zpruner.types import RELATIVE, LayerStats, Mask, SparsityPattern, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SolvedLayer:
    """One layer of sequential pruning: its mask, new and dense weight (out, in), and what it was measured with.

    `quantized` holds the integers and scales of the new weight, where the composition quantises.
    """

    mask: Mask
    weight: Tensor
    dense: Tensor
    stats: LayerStats
    quantized: QuantizedLayer | None = None


def prune_blocks(
    model: PreTrainedModel,
    inventory: Inventory,
    windows: Tensor,
    composition: Composition,
    patterns: Mapping[str, SparsityPattern],
    *,
    batch_size: int,
    stats: Set[Stat] = frozenset({Stat.SQ_SUM}),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    finished: Mapping[str, Callable[[], Tensor]] | None = None,
    solved: Callable[[SolvedLayer], None] = lambda _: None,
    runner: Runner | None = None,
    gradient: Callable[[str], Tensor | None] = lambda _: None,
) -> Iterator[int]:
    """Prune a model in memory block after block; yields each block's index when its weights are in place.

    All layers of a block are measured together, before any of them is pruned, or sub-module by sub-module, as the
    composition says; then the block runs once more, so that the next one sees what the pruned block puts out. Besides
    the block there is in memory what is left to do: the statistics of an input go when the last layer that reads it is
    pruned. Where the composition tunes, that is the last step of a block, which then holds all of its statistics.

    Args:
        model: its weights are overwritten.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        composition: what is done to every layer.
        patterns: layer name -> pattern.
        batch_size: windows per call.
        stats: what to collect besides what the composition needs; the least that layer errors are taken from.
        min_expert_tokens: see `zpruner.calibration.fill_experts`.
        finished: names of the layers that an interrupted run had finished -> what gives the weight (out, in) that it
            gave them. A block all of whose layers are finished is only run, and not yielded; one that is tuned and not
            finished is pruned anew, to the same weights.
        solved: called with every layer as soon as it is pruned, or where blocks are tuned, when its block is.
        runner: of `model`, where its weights are read block by block; what is pruned is then only handed to `solved`.
        gradient: given a layer's name, its grad_sq, float32 (out, in), in the unpruned model; None where the
            composition needs none.
    """
    tuning = composition.tuning
    wanted = (composition.needs | stats) - {Stat.GRAD_SQ}
    known = finished or {}
    if tuning is not None:
        wanted |= {Stat.SQ_SUM}
        batch_size = tuning.batch_size(len(windows), batch_size)
        known = _whole_blocks(inventory, known)
    follow_dense = bool(wanted & RELATIVE) or (tuning is not None and tuning.follows_dense)
    replay = BlockReplay(model, inventory, windows, batch_size, follow_dense, runner)
    waiting: list[SolvedLayer] = []  # to be tuned
    first = composition if tuning is None else replace(composition, rounding=None)

    def solve(layer: PrunableLayer, stats: LayerStats) -> None:
        dense = get_weight(model, layer).clone()
        if (grad_sq := gradient(layer.name)) is not None:
            stats = replace(stats, grad_sq=grad_sq.to(dense.device))
        found = first.prune(dense, stats, patterns[layer.name])
        one = SolvedLayer(found.mask, found.weight, dense, stats, found.quantized)
        if tuning is None:
            solved(one)
        else:
            waiting.append(one)
        set_weight(model, layer, found.weight)

    def prune_block(block: int, todo: list[PrunableLayer]) -> None:
        if not composition.by_submodule:
            prune_layers(replay.measure(block, wanted, min_expert_tokens), todo)
            return
        unpruned: dict[PrunableLayer, Tensor] = {}
        parts = replay.parts(block)
        for layer in inventory.layers:
            if layer.block == block and layer.name in known:
                unpruned[layer] = get_weight(model, layer).clone()
                set_weight(model, layer, known[layer.name]())
        parts = [part for part in parts if any(layer in todo for layer in part.layers)]
        for part in parts:
            left = [layer for layer in part.layers if layer in todo]
            collection = replay.measure(block, wanted, min_expert_tokens, part, unpruned, part is parts[-1])
            unpruned |= {layer: get_weight(model, layer).clone() for layer in left}
            prune_layers(collection, left)

    def prune_layers(collection: Collection, todo: list[PrunableLayer]) -> None:
        readers = Counter(collection.owner[layer.name] for layer in todo)
        for layer in todo:
            solve(layer, collection.stats(layer.name))
            owner = collection.owner[layer.name]
            readers[owner] -= 1
            if not readers[owner]:
                del collection.accumulators[owner]

    def tune_block(tune: BlockTuning, layers: list[PrunableLayer]) -> None:
        kept = {
            one.mask.layer: KeptWeights(one.weight, one.mask.keep, one.stats.require(Stat.SQ_SUM)) for one in waiting
        }
        tuned = tune.tune(kept)
        weights: dict[str, Tensor] = {}
        for one in waiting:
            last = composition.finish(tuned[one.mask.layer], one.mask, one.stats, one.dense.dtype)
            weights[one.mask.layer] = last.weight
            if one.mask.layer not in (finished or {}):
                solved(replace(one, weight=last.weight, quantized=last.quantized))
        for layer in layers:
            set_weight(model, layer, weights[layer.name])
        waiting.clear()

    for block in range(inventory.n_blocks):
        layers = [layer for layer in inventory.layers if layer.block == block]
        todo = [layer for layer in layers if layer.name not in known]
        with replay.holding(block):
            if todo:
                tune = None if tuning is None else BlockTuning(tuning, replay, block)
                prune_block(block, todo)
                if tune is not None:
                    tune_block(tune, todo)
            else:
                replay.advance_dense(block)
            for layer in layers:
                if layer.name in known:
                    set_weight(model, layer, known[layer.name]())
            if block + 1 < inventory.n_blocks:
                replay.advance(block)
        if todo:
            yield block


def _whole_blocks(
    inventory: Inventory, known: Mapping[str, Callable[[], Tensor]]
) -> Mapping[str, Callable[[], Tensor]]:
    """Return those of the layers that are known whose block is known whole: what is tuned, is tuned together."""
    open_blocks = {layer.block for layer in inventory.layers if layer.name not in known}
    return {layer.name: known[layer.name] for layer in inventory.layers if layer.block not in open_blocks}


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
        lambda name: dense(layers[name]),
    )
