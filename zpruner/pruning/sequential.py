"""Sequential pruning: each block is measured with the earlier blocks already pruned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.allocations import Unpruned
from zpruner.calibration import MIN_EXPERT_TOKENS, BlockReplay, Collection, together
from zpruner.execution import Runner
from zpruner.model import (
    Inventory,
    Parameters,
    PrunableLayer,
    get_parameters,
    get_weight,
    set_parameters,
    set_weight,
    shifted,
)
from zpruner.pruning.composition import Composition, Pruned
from zpruner.pruning.structured import StructureChoice
from zpruner.pruning.tuned import BlockTuning
from zpruner.tuning import KeptWeights
from zpruner.types import DERIVATIVES, RELATIVE, LayerStats, Mask, SparsityPattern, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SolvedLayer:
    """One layer of sequential pruning: what became of it, what the dense model has, and what it was measured with."""

    pruned: Pruned
    dense: Parameters
    stats: LayerStats

    @property
    def mask(self) -> Mask:
        """Which weights stay."""
        return self.pruned.mask

    @property
    def weight(self) -> Tensor:
        """The new weight (out, in)."""
        return self.pruned.weight

    @property
    def parameters(self) -> Parameters:
        """The layer's new weight and bias."""
        return Parameters(self.pruned.weight, shifted(self.dense.bias, self.pruned.shift))


def prune_blocks(
    model: PreTrainedModel,
    inventory: Inventory,
    windows: Tensor,
    composition: Composition,
    patterns: Mapping[str, SparsityPattern] | StructureChoice,
    *,
    batch_size: int,
    stats: Set[Stat] = frozenset({Stat.SQ_SUM}),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
    finished: Mapping[str, Callable[[], Parameters]] | None = None,
    solved: Callable[[SolvedLayer], None] = lambda _: None,
    runner: Runner | None = None,
    unpruned: Callable[[str], Mapping[Stat, Tensor]] = lambda _: {},
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
        patterns: layer name -> pattern; or the structures that go.
        batch_size: windows per call.
        stats: what to collect besides what the composition needs; the least that layer errors are taken from.
        min_expert_tokens: see `zpruner.calibration.fill_experts`.
        finished: names of the layers that an interrupted run had finished -> what gives the weight and bias that it
            gave them. A block all of whose layers are finished is only run, and not yielded; one that is tuned and not
            finished is pruned anew, to the same weights.
        solved: called with every layer as soon as it is pruned, or where blocks are tuned, when its block is.
        runner: of `model`, where its weights are read block by block; what is pruned is then only handed to `solved`.
        unpruned: given a layer's name, those of its statistics in the unpruned model that the composition reads.
    """
    tuning = composition.tuning
    wanted = (composition.needs | stats) - DERIVATIVES
    known = finished or {}
    if tuning is not None:
        wanted |= {Stat.SQ_SUM}
        batch_size = tuning.batch_size(len(windows), batch_size)
        known = _whole_blocks(inventory, known)
    follow_dense = bool(wanted & RELATIVE) or (tuning is not None and tuning.follows_dense)
    replay = BlockReplay(model, inventory, windows, batch_size, follow_dense, runner)
    waiting: list[SolvedLayer] = []  # to be tuned
    first = composition if tuning is None else replace(composition, rounding=None)

    def stats_of(layer: PrunableLayer, collection: Collection) -> LayerStats:
        known = unpruned(layer.name).items()
        return collection.stats(layer.name).having({stat: value.to(replay.runner.device) for stat, value in known})

    def solve(layer: PrunableLayer, stats: LayerStats, mask: Mask | None) -> None:
        dense, biased = get_parameters(model, layer).copied(), layer.bias is not None
        if isinstance(patterns, StructureChoice):
            assert mask is not None
            found = first.prune_by(dense.weight, mask.to(dense.weight.device), stats, biased=biased)
        else:
            found = first.prune(dense.weight, stats, patterns[layer.name], biased=biased)
        one = SolvedLayer(found, dense, stats)
        if tuning is None:
            solved(one)
        else:
            waiting.append(one)
        set_parameters(model, layer, one.parameters)

    def masks_of(layers: Sequence[PrunableLayer], collection: Collection) -> dict[str, Mask]:
        """Return the masks that say which structures go from layers, none of which is pruned yet."""
        if not isinstance(patterns, StructureChoice):
            return {}

        def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
            stats = stats_of(layer, collection)
            return composition.correct(get_weight(model, layer), stats).weight, stats

        found = patterns.masks(layers, composition, read, lambda layer: composition.score(*read(layer)).values)
        return {mask.layer: mask for mask in found}

    def prune_block(block: int, layers: list[PrunableLayer]) -> None:
        if not composition.by_submodule:
            prune_layers(replay.measure(block, wanted, min_expert_tokens), layers)
            return
        unpruned: dict[PrunableLayer, Parameters] = {}
        parts = replay.parts(block)
        if isinstance(patterns, StructureChoice):  # what goes is chosen in all layers that carry it at once
            parts = together(parts, [patterns.plan.names_in(found) for found in patterns.plan.within(layers)])
        open_parts = [part for part in parts if any(layer.name not in known for layer in part.layers)]
        for part in parts:
            dense = {layer: get_parameters(model, layer).copied() for layer in part.layers}
            if part in open_parts:
                last = part is open_parts[-1]
                prune_layers(replay.measure(block, wanted, min_expert_tokens, part, unpruned, last), part.layers)
            unpruned |= dense
            put_known(part.layers)

    def prune_layers(collection: Collection, layers: Sequence[PrunableLayer]) -> None:
        masks = masks_of(layers, collection)
        todo = [layer for layer in layers if layer.name not in known]
        readers = Counter(collection.owner[layer.name] for layer in todo)
        for layer in todo:
            solve(layer, stats_of(layer, collection), masks.get(layer.name))
            owner = collection.owner[layer.name]
            readers[owner] -= 1
            if not readers[owner]:
                del collection.accumulators[owner]

    def put_known(layers: Iterable[PrunableLayer]) -> None:
        for layer in layers:
            if layer.name in known:
                set_parameters(model, layer, known[layer.name]())

    def take_out(block: int, layers: list[PrunableLayer]) -> None:
        """Remove a block whole: its layers are zeros, and what comes after it reads what it was given."""
        replay.leave_out(block)
        for layer in layers:
            dense = get_parameters(model, layer)
            nothing = torch.zeros_like(dense.weight)
            if layer.name not in known:
                gone = Pruned(Mask(layer.name, nothing.bool()), nothing)
                solved(SolvedLayer(gone, dense, LayerStats(layer.name, 0, 0)))
            set_weight(model, layer, nothing)

    def tune_block(tune: BlockTuning, layers: list[PrunableLayer]) -> None:
        kept = {
            one.mask.layer: KeptWeights(one.weight, one.mask.keep, one.stats.require(Stat.SQ_SUM)) for one in waiting
        }
        tuned = tune.tune(kept)
        found: dict[str, Parameters] = {}
        for one in waiting:
            name, dtype = one.mask.layer, one.dense.weight.dtype
            last = replace(one, pruned=composition.finish_tuned(tuned[name], one.pruned, one.stats, dtype))
            found[name] = last.parameters
            if name not in (finished or {}):
                solved(last)
        for layer in layers:
            set_parameters(model, layer, found[layer.name])
        waiting.clear()

    for block in range(inventory.n_blocks):
        layers = [layer for layer in inventory.layers if layer.block == block]
        todo = [layer for layer in layers if layer.name not in known]
        with replay.holding(block):
            if isinstance(patterns, StructureChoice) and not patterns.stays(block):
                take_out(block, layers)
            else:
                if todo:
                    tune = None if tuning is None else BlockTuning(tuning, replay, block)
                    prune_block(block, layers)
                    if tune is not None:
                        tune_block(tune, todo)
                else:
                    replay.advance_dense(block)
                put_known(layers)
                if block + 1 < inventory.n_blocks:
                    replay.advance(block)
        if todo:
            yield block


def _whole_blocks(
    inventory: Inventory, known: Mapping[str, Callable[[], Parameters]]
) -> Mapping[str, Callable[[], Parameters]]:
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
    model = Unpruned(
        {name: (layer.out_features, layer.in_features) for name, layer in layers.items()},
        {name: layer.block for name, layer in layers.items()},
        lambda name: dense(layers[name]),
    )
    return composition.allocation.patterns(pattern, composition.group, model)
