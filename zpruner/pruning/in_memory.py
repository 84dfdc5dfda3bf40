"""The whole chain in memory, for notebooks and scripts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from zpruner.calibration import (
    MIN_EXPERT_TOKENS,
    Calibration,
    Collection,
    check_reached,
    collect,
    collect_effects,
    fill_experts,
    gradients_of,
    known_statistics,
)
from zpruner.calibration import calibrate as _calibrate
from zpruner.errors import InvalidSettingError, ShapeMismatchError, whole_number
from zpruner.evaluate import layer_error
from zpruner.execution import WholeRunner
from zpruner.model import (
    Parameters,
    PrunableLayer,
    as_windows,
    check_in_memory,
    get_parameters,
    get_weight,
    ignoring,
    reading,
    set_parameters,
    shifted,
    take_inventory,
    undisturbed,
)
from zpruner.patterns import SparsityPattern, StructuredPattern, StructureKind, parse_pattern
from zpruner.pruning.compose import Method, composition_of
from zpruner.pruning.composition import Composition, Pruned, statistics_of
from zpruner.pruning.permuting import permute, put_back
from zpruner.pruning.results import PrunedLayer, PrunedLayers
from zpruner.pruning.sequential import SolvedLayer, layer_patterns, prune_blocks
from zpruner.pruning.smaller import choose_in_memory, cut_in_place
from zpruner.pruning.structured import Read, StructureChoice
from zpruner.runtime.progress import progress
from zpruner.runtime.transfer import to_host
from zpruner.settings.wording import speaks_of_arguments
from zpruner.types import CHANNEL_SUMS, DERIVATIVES, RELATIVE, LayerStats, Mask, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRUNED = 0.01
"""Share of zeros from which a layer counts as pruned before; a dense one has hardly any."""


@speaks_of_arguments
def needs(*methods: Method) -> frozenset[Stat]:
    """Return the statistics that `calibrate` must collect for these methods, and layer errors are taken from.

    Args:
        methods: as `method` of `prune`.
    """
    return statistics_of(map(composition_of, methods)) | {Stat.SQ_SUM}


@speaks_of_arguments
def calibrate(
    model: PreTrainedModel,
    windows: Tensor | Iterable[object],
    *,
    for_methods: Method | Iterable[Method] = (),
    stats: Iterable[Stat] = CHANNEL_SUMS,
    batch_size: int = 8,
    blocks: str | None = None,
    ignore: Iterable[str] = (),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
) -> Calibration:
    """Run calibration windows through the unpruned model and return the statistics of every prunable layer's input.

    Args:
        model: any causal language model; its mode and the state of torch are left and restored (see `undisturbed`).
        windows: int (windows, seqlen) token ids, in any form that `as_windows` takes.
        for_methods: what will be pruned with, as `method` of `prune`: one, or several. What they read is collected,
            Gram matrices and gradients included.
        stats: what else to collect. `gram` makes layer errors exact, too; `grad_sq` takes one backward pass per window.
        batch_size: windows per forward pass.
        blocks: path of the decoder blocks where structure does not tell.
        ignore: patterns of layer names to leave dense.
        min_expert_tokens: see `fill_experts`.

    Raises:
        UnknownNameError, InvalidSettingError: a method that is not known.
        ModelStructureError: weights not in memory, decoder blocks not found, a prunable layer that was never called, or
            an all-zero gradient.
        NonFiniteError: NaN or infinity in a layer's input or gradient.
        ShapeMismatchError, InvalidSettingError: windows that the model cannot read, or no batch size.
    """
    methods = [for_methods] if isinstance(for_methods, str | Mapping) else list(for_methods)
    return _calibrate(
        model,
        windows,
        stats=known_statistics(stats) | (needs(*methods) if methods else frozenset()),
        batch_size=batch_size,
        blocks=blocks,
        ignore=ignore,
        min_expert_tokens=min_expert_tokens,
    )


@undisturbed
def prune(
    model: PreTrainedModel,
    calibration: Calibration,
    *,
    method: Method = "zpruner",
    sparsity: float | str = 0.5,
    quantize: Mapping[str, Any] | None = None,
    ignore: Iterable[str] = (),
) -> PrunedLayers:
    """Prune a model in memory; its weights are overwritten, zeros in place.

    Args:
        model: the model that was calibrated.
        calibration: from `calibrate`, with the statistics that the method needs (see `needs`).
        method: a preset's or a score's name, or a composition as in params.yaml, e.g.
            `{"score": "wanda", "group": "row", "update": "least_squares"}`.
        sparsity: a ratio in [0, 1); "N:M" with N of every M consecutive inputs kept; or structures such as
            "neurons:0.25 groups:0.25", without which the model is then a smaller one.
        quantize: what is done to what stays, as in params.yaml, e.g. `{"bits": 4}`; None: what `method` says.
        ignore: patterns of names of calibrated layers to leave dense, e.g. `*.0.mlp.*`.

    Returns:
        One entry per pruned layer, with masks of the shape that it had. Where the method permutes and the pattern is
        N:M, model and calibration are in another order then, which its `orders` have.

    Raises:
        UnknownNameError, InvalidSettingError, InvalidPatternError: bad arguments.
        ModelStructureError: weights that are not in memory.
        MissingStatisticError: the method needs a statistic that was not collected.
        NonFiniteError: NaN or infinity in a weight. No weight has been changed by then.
    """
    check_in_memory(model)
    _check_calibration(calibration)
    composition, pattern = composition_of(method, quantize), parse_pattern(sparsity)
    composition.check_propagation("dense")
    composition.check(pattern)
    inventory = ignoring(calibration.inventory, ignore)
    layers = inventory.layers
    for layer in layers:
        stats = calibration.stats(layer.name)
        for stat in composition.needs - RELATIVE:
            stats.require(stat)
        if tuple(get_weight(model, layer).shape) != (layer.out_features, layer.in_features):
            raise ShapeMismatchError(
                f"layer {layer.name}",
                str(tuple(get_weight(model, layer).shape)),
                f"{(layer.out_features, layer.in_features)}, as calibrated",
                "Prune the model that was calibrated.",
            )

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        return get_weight(model, layer), calibration.stats(layer.name)

    moved = composition.moved(pattern)
    orders = permute(model, calibration, moved, str(pattern), ignore=ignore) if moved else {}
    patterns: Mapping[str, SparsityPattern] | StructureChoice
    results: list[PrunedLayer] = []
    new: deque[Parameters] = deque()
    try:
        if isinstance(pattern, StructuredPattern):
            patterns = choose_in_memory(model, inventory, composition, pattern, read, calibration.windows, 8)
        else:
            patterns = layer_patterns(composition, pattern, inventory, read)
        for layer, found in progress(_pruned(patterns, composition, layers, read), "prune", len(layers), "layer"):
            before, stats = get_parameters(model, layer), calibration.stats(layer.name)
            after = Parameters(found.weight, shifted(before.bias, found.shift))
            results.append(_result(found.mask, before, after, stats, calibration.replaced.get(layer.name)))
            new.append(Parameters(to_host(after.weight)(), after.bias))  # an accelerator need not hold the model twice
    except BaseException:
        put_back(model, calibration, orders)
        raise
    for layer in layers:
        if layer.name not in calibration.replaced:
            calibration.replaced[layer.name] = get_parameters(model, layer).copied("cpu")
        set_parameters(model, layer, new.popleft())
    if isinstance(patterns, StructureChoice):
        cut_in_place(model, patterns, [found.mask for found in results])
    return PrunedLayers(results, orders)


@undisturbed
def prune_sequentially(
    model: PreTrainedModel,
    windows: Tensor | Iterable[object],
    *,
    method: Method = "zpruner",
    sparsity: float | str = 0.5,
    quantize: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    blocks: str | None = None,
    ignore: Iterable[str] = (),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
) -> PrunedLayers:
    """Prune a model in memory block after block, each calibrated with the earlier blocks already pruned.

    This is the protocol of the published tables. Arguments and errors as in `calibrate` and `prune`; the layer
    errors are over the inputs that each layer sees in the pruned model. Derivatives, where the method needs them, are
    those of the unpruned model.
    """
    composition, pattern = composition_of(method, quantize), parse_pattern(sparsity)
    composition.check(pattern)
    check_in_memory(model)
    windows, batch_size = as_windows(windows, model.config), whole_number("batch_size", batch_size, 1)
    min_expert_tokens = whole_number("min_expert_tokens", min_expert_tokens, 0)
    inventory, collection = take_inventory(model, blocks, ignore), Collection()
    # What is chosen in the unpruned model: sparsities of layers, blocks that go by their score.
    moved = composition.moved(pattern)
    first = statistics_of([replace(composition, permute=moved)], "pruned") - DERIVATIVES
    if isinstance(pattern, StructuredPattern) and composition.sums(StructureKind.BLOCKS, pattern):
        first = (statistics_of([composition]) | {Stat.SQ_SUM}) - DERIVATIVES
    if first:
        with reading(model, windows):
            batches = collect(model, inventory, windows, collection, stats=first, batch_size=batch_size)
            for _ in progress(batches, "calibrate", -(-len(windows) // batch_size), "batch"):
                pass
        fill_experts(inventory, collection, min_expert_tokens)
        check_reached(inventory, collection.owner)

    derivatives: dict[Stat, Mapping[str, Tensor]] = {}
    if Stat.EFFECT in composition.needs:
        with reading(model, windows):
            derivatives[Stat.EFFECT] = collect_effects(WholeRunner(model), inventory, windows)
    if Stat.GRAD_SQ in composition.needs:
        derivatives[Stat.GRAD_SQ] = gradients_of(model, inventory, windows)

    orders: Mapping[str, Tensor] = {}
    if moved:
        collection.effect = dict(derivatives.get(Stat.EFFECT, {}))  # moves with the rest
        found = Calibration(inventory, collection, derivatives.get(Stat.GRAD_SQ, {}))
        orders = permute(model, found, moved, str(pattern))

    def unpruned(layer: str) -> dict[Stat, Tensor]:
        return {stat: values[layer] for stat, values in derivatives.items()}

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        return get_weight(model, layer), collection.stats(layer.name).having(unpruned(layer.name))

    patterns: Mapping[str, SparsityPattern] | StructureChoice
    if isinstance(pattern, StructuredPattern):
        with reading(model, windows):
            patterns = choose_in_memory(model, inventory, composition, pattern, read, windows, batch_size)
    else:
        patterns = layer_patterns(composition, pattern, inventory, read)
    results = []

    def solved(found: SolvedLayer) -> None:
        results.append(_result(found.mask, found.dense, found.parameters, found.stats))

    blocks_done = prune_blocks(
        model,
        inventory,
        windows,
        composition,
        patterns,
        batch_size=batch_size,
        min_expert_tokens=min_expert_tokens,
        solved=solved,
        unpruned=unpruned,
    )
    with reading(model, windows):
        for _ in progress(blocks_done, "prune block after block", inventory.n_blocks, "block"):
            pass
    if isinstance(patterns, StructureChoice):
        cut_in_place(model, patterns, [found.mask for found in results])
    return PrunedLayers(results, orders)


def _pruned(
    patterns: Mapping[str, SparsityPattern] | StructureChoice,
    composition: Composition,
    layers: Iterable[PrunableLayer],
    read: Read,
) -> Iterator[tuple[PrunableLayer, Pruned]]:
    """Yield every layer with what becomes of it."""
    if isinstance(patterns, StructureChoice):
        yield from patterns.prune(layers, composition, read)
        return
    for layer in layers:
        yield layer, composition.prune(*read(layer), patterns[layer.name], biased=layer.bias is not None)


def _check_calibration(calibration: object) -> None:
    if not isinstance(calibration, Calibration):
        got, action = type(calibration).__name__, "Calibrate first: zpruner.calibrate(model, windows)."
        raise InvalidSettingError("calibration", got, "what zpruner.calibrate returns", action)


def _result(
    mask: Mask, before: Parameters, after: Parameters, stats: LayerStats, dense: Parameters | None = None
) -> PrunedLayer:
    """Return what was done to a layer, given what it had before and has after, and the dense model's where known."""
    zeros = float((before.weight == 0).sum()) / before.weight.numel()
    if not mask.keep.any():  # gone with its block, with nothing measured that it would read
        return PrunedLayer(mask.layer, mask, 1.0, 1.0, zeros)
    error = math.nan
    if dense is not None or zeros < _PRUNED:
        whole = dense or before
        error = layer_error(whole.weight.to(after.weight.device), after.weight, stats, after.shift_since(whole))
    return PrunedLayer(mask.layer, mask, mask.sparsity, error, zeros)
