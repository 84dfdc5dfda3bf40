"""Dense collection: forward passes of the unpruned model, nothing specific to a model family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.calibration.capture import capturing
from zpruner.calibration.collection import Collection
from zpruner.calibration.effects import collect_effects
from zpruner.calibration.experts import MIN_EXPERT_TOKENS, fill_experts
from zpruner.calibration.gradients import GradientSums, collect_gradients
from zpruner.calibration.reached import check_reached
from zpruner.errors import (
    InvalidSettingError,
    NonFiniteError,
    did_you_mean,
    shown,
    whole_number,
)
from zpruner.execution import WholeRunner
from zpruner.model import (
    Inventory,
    Parameters,
    PrunableLayer,
    as_windows,
    check_in_memory,
    get_weight,
    reading,
    take_inventory,
    undisturbed,
)
from zpruner.runtime.progress import progress
from zpruner.runtime.tables import html_table
from zpruner.types import CHANNEL_SUMS, DERIVATIVES, RELATIVE, LayerStats, Stat, check_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, repr=False)
class Calibration:
    """The result of calibrating a model: what can be pruned in it, and the statistics of what each layer reads.

    `windows` are the token ids, int (windows, seqlen).
    `grad_sq`, where gradients were collected: layer -> sum over windows of the squared gradient, float32 (out, in).
    `replaced` fills with the weights and biases that `prune` overwrites, on the host: what later errors compare with.
    """

    inventory: Inventory
    collection: Collection
    grad_sq: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: dict[str, Parameters] = field(default_factory=dict, compare=False, repr=False)
    windows: Tensor | None = field(default=None, compare=False, repr=False)

    def stats(self, layer: str) -> LayerStats:
        """Return the statistics of a layer: of its input, and of its gradient where that was collected."""
        return replace(self.collection.stats(layer), grad_sq=self.grad_sq.get(layer))

    def __repr__(self) -> str:
        first = self.stats(self.inventory.layers[0].name)
        names = ", ".join(stat.value for stat, _ in first)
        return f"Calibration({len(self.inventory.layers)} layers, {self.collection.windows} windows: {names})"

    def _repr_html_(self) -> str:
        """Return a row per kind of layer: how many there are, and how many tokens they read."""
        kinds: dict[str, list[PrunableLayer]] = {}
        for layer in self.inventory.layers:
            kinds.setdefault(layer.kind, []).append(layer)
        rows = []
        for kind, layers in kinds.items():
            tokens = sorted({self.collection.stats(layer.name).tokens for layer in layers})
            span = " to ".join(f"{count:,}" for count in dict.fromkeys((tokens[0], tokens[-1])))
            shapes = ", ".join(dict.fromkeys("x".join(map(str, layer.shape)) for layer in layers))
            rows.append((kind, str(len(layers)), shapes, span))
        return html_table(repr(self), ("layers", "count", "weight", "tokens"), rows)


@undisturbed
def calibrate(
    model: PreTrainedModel,
    windows: Tensor | Iterable[object],
    *,
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
        stats: what to collect: `needs(method)` has what a method reads. `gram` makes layer errors exact, too;
            `grad_sq` takes one backward pass per window.
        batch_size: windows per forward pass.
        blocks: path of the decoder blocks where structure does not tell.
        ignore: patterns of layer names to leave dense.
        min_expert_tokens: see `fill_experts`.

    Raises:
        ModelStructureError: weights not in memory, decoder blocks not found, a prunable layer that was never called, or
            an all-zero gradient.
        NonFiniteError: NaN or infinity in a layer's input or gradient.
        ShapeMismatchError, InvalidSettingError: windows that the model cannot read, or no batch size.
    """
    check_in_memory(model)
    windows, batch_size = as_windows(windows, model.config), whole_number("batch_size", batch_size, 1)
    min_expert_tokens = whole_number("min_expert_tokens", min_expert_tokens, 0)
    wanted = known_statistics(stats) - RELATIVE
    inventory = take_inventory(model, blocks, ignore)
    collection = Collection()
    # What was reached and is finite is told from the inputs, even where only gradients are wanted.
    inputs = wanted - DERIVATIVES or {Stat.SQ_SUM}
    with reading(model, windows):
        batches = collect(model, inventory, windows, collection, stats=inputs, batch_size=batch_size)
        for _ in progress(batches, "calibrate", -(-len(windows) // batch_size), "batch"):
            pass
    fill_experts(inventory, collection, min_expert_tokens)
    check_reached(inventory, collection.owner)
    if Stat.EFFECT in wanted:
        collection.effect = collect_effects(WholeRunner(model), inventory, windows)
    grad_sq = gradients_of(model, inventory, windows) if Stat.GRAD_SQ in wanted else {}
    return Calibration(inventory, collection, grad_sq, windows=windows)


def known_statistics(names: Iterable[Stat | str]) -> frozenset[Stat]:
    """Return statistics by name; one may stand alone. Raises InvalidSettingError for another name."""
    known = [stat.value for stat in Stat]
    found = [names] if isinstance(names, str) else list(names)
    for name in found:
        if name not in known:
            raise InvalidSettingError("stats", shown(name), "statistics", did_you_mean(str(name), known))
    return frozenset(map(Stat, found))


def gradients_of(model: PreTrainedModel, inventory: Inventory, windows: Tensor) -> dict[str, Tensor]:
    """Return grad_sq of every layer, float32 (out, in); errors as `collect_gradients`."""
    sums = GradientSums()
    passes = collect_gradients(model, inventory, windows, sums)
    for _ in progress(passes, "gradients", len(windows), "window"):
        pass
    return sums.by_layer(inventory)


def collect(
    model: PreTrainedModel,
    inventory: Inventory,
    windows: Tensor,
    collection: Collection,
    *,
    stats: Set[Stat],
    batch_size: int,
) -> Iterator[int]:
    """Add the windows not yet in `collection` to it, batch by batch; yields the number of windows done.

    Only the decoder is run, not the language-modelling head.
    """
    device = next(model.parameters()).device
    for start in range(collection.windows, windows.shape[0], batch_size):
        batch = windows[start : start + batch_size]
        # Left before anything is handed out: the modes are the thread's, and a caller may never come back.
        with capturing(model, inventory, collection, stats, inventory.layers), torch.no_grad():
            model.base_model(input_ids=batch.to(device, torch.long), use_cache=False)
        first = collection.windows == 0
        collection.windows += batch.shape[0]
        if first:
            _check_finite(collection, model, inventory)
        yield collection.windows
    _check_finite(collection, model, inventory)


def _check_finite(collection: Collection, model: PreTrainedModel, inventory: Inventory) -> None:
    """Raise NonFiniteError naming the first weight that is to blame, else the first input that shows it."""
    try:
        check_finite(collection)
    except NonFiniteError:
        for layer in inventory.layers:
            check_weight(get_weight(model, layer), LayerStats(layer.name, 0, 0))
        raise


def check_finite(collection: Collection) -> None:
    """Raise NonFiniteError naming the first layer whose input had NaN or infinity."""
    for name, sums in collection.accumulators.items():
        if not sums.finite():
            raise NonFiniteError(
                f"input of layer {name}",
                "NaN or infinity among the activations",
                "finite activations",
                "Check the checkpoint's weights, or load it in another dtype (model.dtype in params.yaml).",
            )
