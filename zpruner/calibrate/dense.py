"""Dense collection: forward passes of the unpruned model, nothing specific to a model family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.calibrate.accumulate import InputAccumulator
from zpruner.calibrate.capture import capturing
from zpruner.composition import check_weight
from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.model import Inventory, get_weight, take_inventory
from zpruner.types import LayerStats, all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Collection:
    """Sums so far: one accumulator per captured input, named after the first layer that reads it.

    `owner` maps every layer to the layer whose accumulator holds its input (itself, or one that reads the same
    tensor); `windows` counts the calibration windows seen.
    """

    accumulators: dict[str, InputAccumulator] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    windows: int = 0

    def stats(self, layer: str) -> LayerStats:
        """Return the statistics of a layer's input."""
        found = self.accumulators[self.owner[layer]]
        return LayerStats(layer, found.tokens, self.windows, **found.state())


@dataclass(frozen=True)
class Calibration:
    """The result of calibrating a model: what can be pruned in it, and the statistics of what each layer reads."""

    inventory: Inventory
    collection: Collection

    def stats(self, layer: str) -> LayerStats:
        """Return the statistics of a layer's input."""
        return self.collection.stats(layer)


def calibrate(
    model: PreTrainedModel,
    windows: Tensor,
    *,
    gram: bool = False,
    batch_size: int = 8,
    blocks: str | None = None,
    ignore: Iterable[str] = (),
) -> Calibration:
    """Run calibration windows through the unpruned model and return the statistics of every prunable layer's input.

    Args:
        model: any causal language model.
        windows: int (windows, seqlen) token ids.
        gram: collect X X^T too (needed by weight updates and by exact layer errors).
        batch_size: windows per forward pass.
        blocks: path of the decoder blocks where structure does not tell.
        ignore: patterns of layer names to leave dense.

    Raises:
        ModelStructureError: decoder blocks not found, or a prunable layer that was never called.
        NonFiniteError: NaN or infinity in a layer's input.
    """
    inventory = take_inventory(model, blocks, ignore)
    collection = Collection()
    for _ in collect(model, inventory, windows, collection, gram=gram, batch_size=batch_size):
        pass
    check_complete(inventory, collection)
    return Calibration(inventory, collection)


def collect(
    model: PreTrainedModel,
    inventory: Inventory,
    windows: Tensor,
    collection: Collection,
    *,
    gram: bool,
    batch_size: int,
) -> Iterator[int]:
    """Add the windows not yet in `collection` to it, batch by batch; yields the number of windows done.

    Only the decoder is run, not the language-modelling head.
    """
    device = next(model.parameters()).device
    with capturing(model, inventory, collection, gram, inventory.layers), torch.no_grad():
        for start in range(collection.windows, windows.shape[0], batch_size):
            batch = windows[start : start + batch_size]
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
        if not all_finite(sums.sq_sum):
            raise NonFiniteError(
                f"input of layer {name}",
                "NaN or infinity among the activations",
                "finite activations",
                "Check the checkpoint's weights, or load it in another dtype (model.dtype in params.yaml).",
            )


def check_complete(inventory: Inventory, collection: Collection) -> None:
    """Raise ModelStructureError naming a prunable layer that no calibration token reached."""
    for layer in inventory.layers:
        if layer.name not in collection.owner:
            raise ModelStructureError(
                f"layer {layer.name}",
                "no token during calibration",
                "activations for every prunable layer",
                "The model does not multiply by this weight: list it under model.ignore in params.yaml.",
            )
