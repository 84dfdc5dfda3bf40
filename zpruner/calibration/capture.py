"""Capture what prunable weights multiply, whichever way a model's code multiplies them.

An expert of a mixture is a layer of its own: only the tokens routed to it count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.calibration.accumulate import InputAccumulator
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer, get_weight
from zpruner.model.products import Products, memory_of
from zpruner.types import Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zpruner.calibration.collection import Collection

Observer = Callable[[PrunableLayer, Tensor], None]


@contextmanager
def capturing(
    model: PreTrainedModel,
    inventory: Inventory,
    collection: Collection,
    stats: Set[Stat],
    layers: Iterable[PrunableLayer],
    dense: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Add the sums `stats` of what `layers` multiply to `collection`, until the block ends.

    Layers that read the same memory unchanged share one accumulator, until one of them reads something more. Relative
    statistics need `dense`, which has every layer's input in the unpruned model for the same tokens; experts are set
    against themselves, since in the unpruned model other tokens may be routed to them.
    """
    seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}  # holds the tensors, so that no address is reused
    read: dict[str, list[tuple[object, ...]]] = {}

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        if not inputs.numel():  # an expert without a token in this batch
            return
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
                sums = InputAccumulator(layer.in_features, stats, inputs.device)
                collection.accumulators[layer.name] = sums
            if layer.pool is None:
                sums.add(inputs, None if dense is None else {Stat.CROSS: dense[layer.name]})
            else:
                rows = inputs.reshape(-1, layer.in_features)
                rows = rows[rows.any(dim=-1)]  # batched experts get zeros in place of tokens routed elsewhere
                sums.add(rows, None if dense is None else {Stat.CROSS: rows})

    def forget(_: int) -> None:
        seen.clear()
        read.clear()

    with _Watch(model, inventory, layers, observe, forget):
        yield


class Reached(Exception):  # noqa: N818 - no error: what is left of a forward pass is not needed
    """Every product that was waited for has been seen."""


@contextmanager
def until(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer], reads: Mapping[str, int] | None
) -> Iterator[None]:
    """Leave the block, forward pass and all, once the products that `reads` counts by layer have begun.

    With None the forward pass runs to its end. What else watches the products is to be entered within.
    """
    if reads is None:
        yield
        return
    left = sum(reads.values())

    def observe(_layer: PrunableLayer, _inputs: Tensor) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Reached

    try:
        with _Watch(model, inventory, layers, observe):
            yield
    except Reached:
        pass


@contextmanager
def noting(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer]
) -> Iterator[list[tuple[str, object]]]:
    """Yield a list that fills, until the block ends, with every product: the layer's name, and what memory it reads."""
    found: list[tuple[str, object]] = []
    held: list[Tensor] = []  # so that no address is reused

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        held.append(inputs)
        found.append((layer.name, (inputs.data_ptr(), inputs.shape, inputs.stride())))

    with _Watch(model, inventory, layers, observe):
        yield found


@contextmanager
def keeping(
    model: PreTrainedModel, inventory: Inventory, layers: Iterable[PrunableLayer]
) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping that fills with what `layers` multiply, by name, until the block ends."""
    kept: dict[str, Tensor] = {}

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        if layer.pool is None and layer.name in kept and kept[layer.name].data_ptr() != inputs.data_ptr():
            raise ModelStructureError(
                f"layer {layer.name}",
                "more than one input in a forward pass",
                "one, to be compared with the unpruned model's",
                "List the layer under model.ignore in params.yaml, or leave out methods with `correct`.",
            )
        kept[layer.name] = inputs

    with _Watch(model, inventory, layers, observe):
        yield kept


class _Watch:
    """While entered, calls `observe` with a layer and its input whenever one of `layers` is multiplied.

    Weights are recognised by their address. Those of a block may come when it is called and go when it has returned.

    Args:
        model: the model.
        inventory: of it.
        layers: which to watch.
        observe: see above.
        leave: called with a block's index when it has returned.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inventory: Inventory,
        layers: Iterable[PrunableLayer],
        observe: Observer,
        leave: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.model, self.inventory, self.observe, self.leave = model, inventory, observe, leave
        self.layers: dict[int, list[PrunableLayer]] = {}
        for layer in layers:
            self.layers.setdefault(layer.block, []).append(layer)
        self._lasting: dict[int, dict[int, tuple[PrunableLayer, Tensor]]] = {}
        """Memory of a weight -> address of a matrix in it -> its layer, and the matrix (out, in)."""
        self._passing: dict[int, dict[int, tuple[PrunableLayer, Tensor]]] = {}
        # Closing it drops what it holds: a cycle would keep the statistics of a block until it is collected.
        self._entered = ExitStack()

    def __contains__(self, memory: object) -> bool:
        return memory in self._lasting or memory in self._passing

    def __enter__(self) -> None:
        products = Products(self, self._report)
        for block in self.layers:
            self._add(block, self._lasting)
        for block in range(self.inventory.n_blocks):
            module = self.model.get_submodule(f"{self.inventory.blocks}.{block}")

            def before(*_: object, block: int = block) -> None:
                self._add(block, self._passing)

            def after(*_: object, block: int = block) -> None:
                self._passing.clear()
                products.forget()
                self.leave(block)

            self._entered.callback(module.register_forward_pre_hook(before).remove)
            self._entered.callback(module.register_forward_hook(after).remove)
        self._entered.enter_context(products)

    def __exit__(self, *error: Any) -> None:
        self._entered.close()

    def _add(self, block: int, table: dict[int, dict[int, tuple[PrunableLayer, Tensor]]]) -> None:
        for layer in self.layers.get(block, ()):
            weight = get_weight(self.model, layer)
            memory = memory_of(weight)
            if not weight.is_meta and (table is self._lasting or memory not in self._lasting):
                table.setdefault(memory, {})[weight.data_ptr()] = (layer, weight)

    def _report(self, weight: Tensor, inputs: Tensor) -> None:
        memory = memory_of(weight)
        found = (self._lasting.get(memory) or self._passing[memory]).get(weight.data_ptr())
        if found is None or weight.numel() != found[1].numel():
            return
        layer, expected = found
        if weight.shape != expected.shape or (weight.stride() != expected.stride() and min(weight.shape) > 1):
            raise ModelStructureError(
                f"layer {layer.name}",
                f"a product with it as {tuple(weight.shape)} of strides {weight.stride()}",
                f"(out, in) = {tuple(expected.shape)} of strides {expected.stride()}",
                "The model's code uses this weight in more ways than one: list it under model.ignore in params.yaml.",
            )
        with torch.inference_mode(False), torch.no_grad():  # the model's code may have switched to it
            self.observe(layer, inputs)
