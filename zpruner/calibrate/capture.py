"""Capture what prunable weights multiply, whichever way a model's code multiplies them.

Most weights are used through `nn.Linear`, some as `weight @ x` or through `addmm`. All of these end in a few torch
functions; intercepting those finds every input without knowing the module that holds the weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from zpruner.calibrate.accumulate import InputAccumulator
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

    from zpruner.calibrate.dense import Collection

Observer = Callable[[PrunableLayer, Tensor], None]


@contextmanager
def capturing(
    model: PreTrainedModel,
    inventory: Inventory,
    collection: Collection,
    gram: bool,
    layers: Iterable[PrunableLayer],
    dense: Mapping[str, Tensor] | None = None,
) -> Iterator[None]:
    """Add to `collection` what `layers` multiply, until the block ends.

    Layers that read the same memory unchanged share one accumulator. With `dense`, which has every layer's input in
    the unpruned model for the same tokens, X_dense X^T is summed too.
    """
    seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}  # holds the tensors, so that no address is reused

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        memory = (inputs.data_ptr(), inputs.shape, inputs.stride(), inputs._version)
        owner, _ = seen.setdefault(memory, (layer.name, inputs))
        known = collection.owner.setdefault(layer.name, owner)
        if known != owner:
            raise ModelStructureError(
                f"layer {layer.name}",
                f"an input shared with {owner}, earlier with {known}",
                "the same sharing of inputs in every forward pass",
                "Set calibration.batch_size to 1, or list the layer under model.ignore in params.yaml.",
            )
        if owner == layer.name:
            sums = collection.accumulators.get(owner)
            if sums is None:
                sums = InputAccumulator(layer.in_features, gram, inputs.device, dense is not None)
                collection.accumulators[owner] = sums
            sums.add(inputs, None if dense is None else dense[owner])

    def forget(*_: object) -> None:
        seen.clear()

    handles: list[RemovableHandle] = []
    try:
        for block in range(inventory.n_blocks):
            module = model.get_submodule(f"{inventory.blocks}.{block}")
            handles.append(module.register_forward_hook(forget))
        with _Products({model.get_parameter(layer.tensor).data_ptr(): layer for layer in layers}, observe):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def keeping(model: PreTrainedModel, layers: Iterable[PrunableLayer]) -> Iterator[dict[str, Tensor]]:
    """Yield a mapping that fills with what `layers` multiply, by name, until the block ends."""
    kept: dict[str, Tensor] = {}

    def observe(layer: PrunableLayer, inputs: Tensor) -> None:
        kept[layer.name] = inputs

    with _Products({model.get_parameter(layer.tensor).data_ptr(): layer for layer in layers}, observe):
        yield kept


class _Products(TorchFunctionMode):
    """Reports the other operand of every matrix product with one of the given weights.

    Args:
        weights: address of a weight's memory -> its layer.
        observe: called with the layer and its input, (..., in).
    """

    def __init__(self, weights: Mapping[int, PrunableLayer], observe: Observer) -> None:
        super().__init__()
        self.weights, self.observe = weights, observe

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operands = _operands(getattr(func, "__name__", ""), args, kwargs or {})
        if operands is not None:
            left, right = operands
            if (layer := self._layer(right)) is not None:
                self.observe(layer, left)
            elif (layer := self._layer(left)) is not None:
                self.observe(layer, right.transpose(-1, -2))
        return func(*args, **(kwargs or {}))

    def _layer(self, operand: Tensor) -> PrunableLayer | None:
        layer = self.weights.get(operand.data_ptr())
        whole = layer is not None and operand.numel() == layer.out_features * layer.in_features
        return layer if whole else None


def _operands(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Return the two factors of a matrix product, or None where `name` is no such function."""
    match name:
        case "linear":
            first, second = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
        case "matmul" | "mm" | "__matmul__" if len(args) > 1:
            first, second = args[0], args[1]
        case "__rmatmul__":
            first, second = args[1], args[0]
        case "addmm" if len(args) > 2:
            first, second = args[1], args[2]
        case _:
            return None
    return first, second
