"""Capture what prunable weights multiply, whichever way a model's code multiplies them.

An expert of a mixture is its own layer: only the tokens routed to it count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.calibration.accumulate import InputAccumulator
from zpruner.calibration.watch import Observer, Watch
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer
from zpruner.types import Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zpruner.calibration.collection import Collection


@contextmanager
def capturing(
    model: PreTrainedModel,
    inventory: Inventory,
    collection: Collection,
    stats: Set[Stat],
    layers: Iterable[PrunableLayer],
    dense: Kept | None = None,
    reached: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Add the sums `stats` of what `layers` multiply to `collection`, until the block ends.

    Layers that read the same memory unchanged share one accumulator, until one of them reads something more. Relative
    statistics need `dense`, which has what every layer reads in the unpruned model for the same tokens; experts are set
    against themselves, since in the unpruned model other tokens may be routed to them. `reached` is called before each
    of their products.
    """
    summed = stats - {Stat.DRIFT}
    latest: dict[str, Tensor] = {}  # what a layer has read whose output is going to be added to something
    seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}  # holds the tensors, so that no address is reused
    read: dict[str, list[tuple[object, ...]]] = {}

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        reached()
        if not inputs.numel():  # an expert without a token in this batch
            return
        if dense is not None and layer.name in dense.streams:
            latest[layer.name] = inputs
        # Of what is computed in inference mode nobody can tell whether it was changed since: such is never shared.
        version = object() if inputs.is_inference() else inputs._version
        memory = (inputs.data_ptr(), inputs.shape, inputs.stride(), version)
        owner, _ = seen.setdefault(memory, (layer.name, inputs))
        before = read.setdefault(layer.name, [])
        if layer.name not in collection.owner:
            # Sums of one that has read something else, too, or this twice, are not to be shared.
            collection.owner[layer.name] = owner if read[owner] in ([], [memory]) else layer.name
        known = collection.owner[layer.name]
        again = bool(before)
        waiting = [name for name in collection.sharing(layer.name) if name not in read] if again else []
        if waiting or (known not in (owner, layer.name) and not before):
            raise ModelStructureError(
                f"layer {layer.name}",
                f"an input that is not the one it shared with {waiting[0] if waiting else known} earlier",
                "the same sharing of inputs in every forward pass",
                "Set calibration.batch_size to 1, or list the layer under model.ignore in params.yaml.",
            )
        if again:
            collection.separate(layer.name)
        before.append(memory)
        if collection.owner[layer.name] == layer.name:
            sums = collection.accumulators.get(layer.name)
            if sums is None:
                sums = InputAccumulator(layer.in_features, summed, inputs.device)
                collection.accumulators[layer.name] = sums
            if layer.pool is None:
                sums.add(inputs, None if dense is None else {Stat.CROSS: dense.inputs[layer.name]})
            else:
                rows = inputs.reshape(-1, layer.in_features)
                rows = rows[rows.any(dim=-1)]  # batched experts get zeros in place of tokens routed elsewhere
                sums.add(rows, None if dense is None else {Stat.CROSS: rows})

    def add_drift(layer: PrunableLayer, stream: Tensor) -> None:
        if dense is None or layer.name not in latest:
            return
        away = dense.streams[layer.name].float() - stream.float()
        inputs = latest.pop(layer.name).float()
        product = away.reshape(-1, layer.out_features).T @ inputs.reshape(-1, layer.in_features)
        known = collection.drift.setdefault(layer.name, torch.zeros_like(product))
        known += product

    def forget(_: int) -> None:
        seen.clear()
        read.clear()
        latest.clear()

    with Watch(model, inventory, layers, observe, forget, add_drift if Stat.DRIFT in stats else None):
        yield


class Reached(Exception):  # noqa: N818 - no error: what is left of a forward pass is not needed
    """Every product that was waited for has been seen."""


@contextmanager
def until(
    model: PreTrainedModel,
    inventory: Inventory,
    layers: Iterable[PrunableLayer],
    reads: Mapping[str, int] | None,
    added: Mapping[str, int] | None = None,
) -> Iterator[None]:
    """Leave the block, forward pass and all, once the products that `reads` counts by layer have begun.

    So have the sums that `added` counts, where it is given. With no `reads` the forward pass runs to its end. What else
    watches the products is to be entered within.
    """
    if reads is None:
        yield
        return
    left = sum(reads.values()) + sum((added or {}).values())

    def observe(_layer: PrunableLayer, _inputs: Tensor) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Reached

    try:
        with Watch(model, inventory, layers, observe, added=observe if added else None):
            yield
    except Reached:
        pass


@contextmanager
def noting(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer]
) -> Iterator[tuple[list[tuple[str, object]], list[str]]]:
    """Yield two lists that fill until the block ends.

    One has every product: the layer's name, and what memory it reads. The other has the layer's name at every sum of
    what it puts out and something else; experts' are left out.
    """
    found: list[tuple[str, object]] = []
    sums: list[str] = []
    held: list[Tensor] = []  # so that no address is reused

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        held.append(inputs)
        found.append((layer.name, (inputs.data_ptr(), inputs.shape, inputs.stride())))

    def add(layer: PrunableLayer, _stream: Tensor) -> None:
        if layer.pool is None:
            sums.append(layer.name)

    with Watch(model, inventory, layers, observe, added=add):
        yield found, sums


@dataclass
class Kept:
    """What the layers of a block have read, by name, and what their outputs were added to."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    streams: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def keeping(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer], streams: bool = False
) -> Iterator[Kept]:
    """Yield what fills, until the block ends, with what `layers` multiply; with `streams`, what they are added to."""
    kept = Kept()

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        before = kept.inputs.get(layer.name)
        if layer.pool is None and before is not None and before.data_ptr() != inputs.data_ptr():
            raise ModelStructureError(
                f"layer {layer.name}",
                "more than one input in a forward pass",
                "one, to be compared with the unpruned model's",
                "List the layer under model.ignore in params.yaml, or leave out methods with `correct`.",
            )
        kept.inputs[layer.name] = inputs

    def add(layer: PrunableLayer, stream: Tensor) -> None:
        if layer.pool is None:
            kept.streams[layer.name] = stream.clone()  # it may be changed in place

    with Watch(model, inventory, layers, observe, added=add if streams else None):
        yield kept


@contextmanager
def sloping(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer], passed: Observer
) -> Iterator[None]:
    """Call `passed`, until the block ends, with a layer and the gradient of what it has put out, (..., out).

    That is when gradients pass back through a product with one of `layers`.
    """
    with Watch(model, inventory, layers, lambda _layer, _inputs: None, slope=passed):
        yield
