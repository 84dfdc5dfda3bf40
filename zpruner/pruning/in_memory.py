"""The whole chain in memory, for notebooks and scripts."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch import Tensor

from zpruner.calibration import (
    MIN_EXPERT_TOKENS,
    Calibration,
    Collection,
    check_reached,
    collect,
    fill_experts,
    gradients_of,
)
from zpruner.errors import InvalidSettingError, ShapeMismatchError, shown, whole_number
from zpruner.evaluate import layer_error
from zpruner.model import (
    as_windows,
    check_in_memory,
    get_weight,
    reading,
    set_weight,
    take_inventory,
    undisturbed,
)
from zpruner.pruning.composition import Composition, compose, statistics_of
from zpruner.pruning.presets import PRESETS
from zpruner.pruning.sequential import SolvedLayer, layer_patterns, prune_blocks
from zpruner.runtime.transfer import to_host
from zpruner.settings.explain import explain
from zpruner.settings.params import MethodSettings
from zpruner.settings.wording import speaks_of_arguments
from zpruner.types import RELATIVE, LayerStats, Mask, SparsityPattern, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PRUNED = 0.01
"""Share of zeros from which a layer counts as pruned before; a dense one has hardly any."""


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning did to one layer: its mask, achieved sparsity, and the share of its output that is lost.

    `sparsity` is the share that the mask removes of all the layer's weights, `zeros_before` that of zeros before.
    `layer_error` compares with the dense weights: those that `calibrate` saw, though `prune` has replaced them since.
    It is NaN where they are not known, in a layer that was pruned before that: compared with its weights of then, a
    model that is pruned twice would look better than it is.

    The error is over the inputs that the layer was pruned for: under pruned propagation those of the half-pruned model,
    where the pipeline's evaluation takes the unpruned model's, the same for all variants.
    """

    name: str
    mask: Mask
    sparsity: float
    layer_error: float
    zeros_before: float


@speaks_of_arguments
def needs(*methods: str | Mapping[str, Any]) -> frozenset[Stat]:
    """Return the statistics that `calibrate` must collect for these methods, and layer errors are taken from.

    Args:
        methods: as `method` of `prune`.
    """
    return statistics_of(map(_composition, methods)) | {Stat.SQ_SUM}


@undisturbed
def prune(
    model: PreTrainedModel,
    calibration: Calibration,
    *,
    method: str | Mapping[str, Any] = "zpruner",
    sparsity: float | str = 0.5,
) -> tuple[PrunedLayer, ...]:
    """Prune a model in memory; its weights are overwritten, zeros in place.

    Args:
        model: the model that was calibrated.
        calibration: from `calibrate`, with the statistics that the method needs (see `needs`).
        method: a preset's or a score's name, or a composition as in params.yaml, e.g.
            `{"score": "wanda", "group": "row", "update": "least_squares"}`.
        sparsity: a ratio in [0, 1), or "N:M" with N of every M consecutive inputs kept.

    Returns:
        One entry per pruned layer.

    Raises:
        UnknownNameError, InvalidSettingError, InvalidPatternError: bad arguments.
        ModelStructureError: weights that are not in memory.
        MissingStatisticError: the method needs a statistic that was not collected.
        NonFiniteError: NaN or infinity in a weight. No weight has been changed by then.
    """
    check_in_memory(model)
    _check_calibration(calibration)
    composition = _composition(method)
    pattern = SparsityPattern.parse(sparsity)
    layers = calibration.inventory.layers
    patterns = layer_patterns(
        composition,
        pattern,
        calibration.inventory,
        lambda layer: (get_weight(model, layer), calibration.stats(layer.name)),
    )
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
    results: list[PrunedLayer] = []
    weights: deque[Tensor] = deque()
    for layer in layers:
        weight, stats = get_weight(model, layer), calibration.stats(layer.name)
        mask, pruned = composition.prune(weight, stats, patterns[layer.name])
        results.append(_result(mask, weight, pruned, stats, calibration.replaced.get(layer.name)))
        weights.append(to_host(pruned)())  # an accelerator need not hold the model twice
    for layer in layers:
        if layer.name not in calibration.replaced:
            calibration.replaced[layer.name] = get_weight(model, layer).to("cpu", copy=True)
        set_weight(model, layer, weights.popleft())
    return tuple(results)


@undisturbed
def prune_sequentially(
    model: PreTrainedModel,
    windows: Tensor | Iterable[object],
    *,
    method: str | Mapping[str, Any] = "zpruner",
    sparsity: float | str = 0.5,
    batch_size: int = 8,
    blocks: str | None = None,
    ignore: Iterable[str] = (),
    min_expert_tokens: int = MIN_EXPERT_TOKENS,
) -> tuple[PrunedLayer, ...]:
    """Prune a model in memory block after block, each calibrated with the earlier blocks already pruned.

    This is the protocol of the published tables. Arguments and errors as in `calibrate` and `prune`; the layer
    errors are over the inputs that each layer sees in the pruned model. Gradients, where the method needs them, are
    those of the unpruned model.
    """
    composition = _composition(method)
    check_in_memory(model)
    windows, batch_size = as_windows(windows, model.config), whole_number("batch_size", batch_size, 1)
    min_expert_tokens = whole_number("min_expert_tokens", min_expert_tokens, 0)
    inventory, collection = take_inventory(model, blocks, ignore), Collection()
    if allocated := statistics_of([composition], "pruned") - {Stat.GRAD_SQ}:
        with reading(model, windows):
            for _ in collect(model, inventory, windows, collection, stats=allocated, batch_size=batch_size):
                pass
        fill_experts(inventory, collection, min_expert_tokens)
        check_reached(inventory, collection.owner)
    patterns = layer_patterns(
        composition,
        SparsityPattern.parse(sparsity),
        inventory,
        lambda layer: (get_weight(model, layer), collection.stats(layer.name)),
    )
    grad_sq = gradients_of(model, inventory, windows) if Stat.GRAD_SQ in composition.needs else {}
    results = []

    def solved(found: SolvedLayer) -> None:
        results.append(_result(found.mask, found.dense, found.weight, found.stats))

    blocks_done = prune_blocks(
        model,
        inventory,
        windows,
        composition,
        patterns,
        batch_size=batch_size,
        min_expert_tokens=min_expert_tokens,
        solved=solved,
        gradient=grad_sq.get,
    )
    with reading(model, windows):
        for _ in blocks_done:
            pass
    return tuple(results)


def _check_calibration(calibration: object) -> None:
    if not isinstance(calibration, Calibration):
        got, action = type(calibration).__name__, "Calibrate first: zpruner.calibrate(model, windows)."
        raise InvalidSettingError("calibration", got, "what zpruner.calibrate returns", action)


def _result(mask: Mask, before: Tensor, after: Tensor, stats: LayerStats, dense: Tensor | None = None) -> PrunedLayer:
    """Return what was done to a layer, given its weight (out, in) before and after, and the dense one where known."""
    zeros = float((before == 0).sum()) / before.numel()
    if dense is not None:
        error = layer_error(dense.to(before.device), after, stats)
    else:
        error = layer_error(before, after, stats) if zeros < _PRUNED else math.nan
    return PrunedLayer(mask.layer, mask, mask.sparsity, error, zeros)


def _composition(method: str | Mapping[str, Any]) -> Composition:
    named = isinstance(method, str)
    if not (named or (isinstance(method, Mapping) and all(isinstance(key, str) for key in method))):
        expected = 'a name, or a composition such as {"score": "wanda", "group": "row"}'
        raise InvalidSettingError("method", shown(method), expected, "`zpruner methods` lists them.")
    data = dict(PRESETS.get(method, {"score": method})) if isinstance(method, str) else dict(method)
    try:
        return compose(MethodSettings(**data))
    except ValidationError as error:
        raise explain(error, "method", MethodSettings) from None
