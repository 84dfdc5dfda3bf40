"""See what prunable weights multiply while a model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer, get_weight
from zpruner.model.products import Products, memory_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Observer = Callable[[PrunableLayer, Tensor], None]


class Watch:
    """While entered, calls `observe` with a layer and its input whenever one of `layers` is multiplied.

    Weights are recognised by their address. Those of a block may come when it is called and go when it has returned.

    Args:
        model: the model.
        inventory: of it.
        layers: which to watch.
        observe: see above.
        leave: called with a block's index when it has returned.
        added: called with a layer and what its output is about to be added to.
        slope: called with a layer and the gradient of its output.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inventory: Inventory,
        layers: Iterable[PrunableLayer],
        observe: Observer,
        leave: Callable[[int], None] = lambda _: None,
        added: Observer | None = None,
        slope: Observer | None = None,
    ) -> None:
        self.model, self.inventory, self.observe, self.leave = model, inventory, observe, leave
        self.added, self.slope = added, slope
        self._observed = set(layers)
        blocks = {layer.block for layer in self._observed}
        self.layers: dict[int, list[PrunableLayer]] = {}
        for layer in inventory.layers:  # what other layers put out may be in the stream
            if layer in self._observed or (added is not None and layer.block in blocks):
                self.layers.setdefault(layer.block, []).append(layer)
        self._lasting: dict[int, dict[int, tuple[PrunableLayer, Tensor]]] = {}
        """Memory of a weight -> address of a matrix in it -> its layer, and the matrix (out, in)."""
        self._passing: dict[int, dict[int, tuple[PrunableLayer, Tensor]]] = {}
        # Closing it drops what it holds: a cycle would keep the statistics of a block until it is collected.
        self._entered = ExitStack()

    def __contains__(self, memory: object) -> bool:
        return memory in self._lasting or memory in self._passing

    def __enter__(self) -> None:
        products = Products(
            self,
            self._report,
            added=None if self.added is None else self._report_sum,
            slope=None if self.slope is None else self._report_slope,
        )
        for block in self.layers:
            self._add(block, self._lasting)
        for block in range(self.inventory.n_blocks):
            module = self.model.get_submodule(f"{self.inventory.blocks}.{block}")

            def before(_: object, args: tuple[Any, ...], kwargs: dict[str, Any], block: int = block) -> None:
                self._add(block, self._passing)
                hidden = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
                if hidden is not None:
                    products.begin(hidden)

            def after(*_: object, block: int = block) -> None:
                self._passing.clear()
                products.forget()
                self.leave(block)

            self._entered.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
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

    def _find(self, weight: Tensor) -> tuple[PrunableLayer, Tensor] | None:
        memory = memory_of(weight)
        return (self._lasting.get(memory) or self._passing[memory]).get(weight.data_ptr())

    def _report_sum(self, weight: Tensor, other: Tensor) -> None:
        found = self._find(weight)
        if found is not None and self.added is not None and found[0] in self._observed:
            with torch.inference_mode(False), torch.no_grad():
                self.added(found[0], other)

    def _report_slope(self, weight: Tensor, gradient: Tensor) -> None:
        found = self._find(weight)
        if found is not None and self.slope is not None and found[0] in self._observed:
            with torch.no_grad():
                self.slope(found[0], gradient)

    def _report(self, weight: Tensor, inputs: Tensor) -> None:
        found = self._find(weight)
        if found is None or weight.numel() != found[1].numel():
            return
        layer, expected = found
        if layer not in self._observed:
            return
        if weight.shape != expected.shape or (weight.stride() != expected.stride() and min(weight.shape) > 1):
            raise ModelStructureError(
                f"layer {layer.name}",
                f"a product with it as {tuple(weight.shape)} of strides {weight.stride()}",
                f"(out, in) = {tuple(expected.shape)} of strides {expected.stride()}",
                "The model's code uses this weight in more ways than one: list it under model.ignore in params.yaml.",
            )
        with torch.inference_mode(False), torch.no_grad():  # the model's code may have switched to it
            self.observe(layer, inputs)
