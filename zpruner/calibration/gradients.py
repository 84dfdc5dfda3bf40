"""Gradient statistics: one backward pass of the language-modelling loss per calibration window.

Per prunable weight the squares of its gradient are summed over windows (Pruner-Zero, arXiv 2406.02924; GBLM,
arXiv 2311.04902). Only prunable weights get gradients; each is squared, added and freed as soon as it is there, and
decoder blocks are recomputed in the backward pass, so that memory stays near the forward's plus one gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.model import Inventory
from zpruner.types import all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOSS_SCALE = 100.0
"""The loss is multiplied by this before the backward pass, against underflow in float16, and gradients divided."""


@dataclass
class GradientSums:
    """Sums so far: parameter name -> float32 of the parameter's shape; `windows` counts those behind them."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    windows: int = 0

    def by_layer(self, inventory: Inventory) -> dict[str, Tensor]:
        """Return grad_sq of every layer, float32 (out, in), sharing memory with the sums."""
        return {layer.name: layer.view(self.sums[layer.tensor]) for layer in inventory.layers}


def collect_gradients(
    model: PreTrainedModel, inventory: Inventory, windows: Tensor, collection: GradientSums
) -> Iterator[int]:
    """Add the windows not yet in `collection` to it, one backward pass each; yields the number of windows done.

    The loss of a window is the mean negative log-likelihood of its `seqlen - 1` predicted tokens. The model is left
    as it was: weights, flags and gradients of its parameters.

    Args:
        model: any causal language model, in evaluation mode.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        collection: of the windows done so far; changed in place.

    Raises:
        NonFiniteError: NaN or infinity in a layer's gradient.
        ModelStructureError: weights or code that have no gradients; after the last window, a layer whose gradient is
            zero everywhere.
    """
    device = next(model.parameters()).device
    tensors = dict.fromkeys(layer.tensor for layer in inventory.layers)
    parameters = {name: model.get_parameter(name) for name in tensors}
    for name, parameter in parameters.items():
        check_differentiable(name, parameter)
        if name not in collection.sums:
            collection.sums[name] = torch.zeros(parameter.shape, dtype=torch.float32, device=device)
    blocks = [model.get_submodule(f"{inventory.blocks}.{index}") for index in range(inventory.n_blocks)]
    with _only_these_differentiable(model, parameters.values()), _recomputed(blocks):
        for window in windows[collection.windows :]:
            with _accumulating(parameters, collection.sums):
                ids = window[None].to(device, torch.long)
                with torch.enable_grad(), _repeatable_attention(device):
                    logits = model(input_ids=ids, use_cache=False).logits[0]
                    if not logits.requires_grad:
                        raise _without_gradients(model)
                    (LOSS_SCALE * cross_entropy(logits[:-1].float(), ids[0, 1:])).backward()
            collection.windows += 1
            if collection.windows == 1:
                _check_finite(collection, inventory)
            yield collection.windows
    check_gradients(collection, inventory)


def check_differentiable(name: str, parameter: Tensor) -> None:
    """Raise ModelStructureError naming a weight that no gradients can be taken with."""
    if parameter.is_inference():
        raise ModelStructureError(
            name,
            "a weight made in torch.inference_mode, of which there are no gradients",
            "an ordinary tensor",
            "Load the model outside of it.",
        )


def _without_gradients(model: PreTrainedModel) -> ModelStructureError:
    return ModelStructureError(
        f"model {type(model).__name__}",
        "forward code that switches gradients off",
        "logits that depend on the weights",
        "Remove torch.no_grad or torch.inference_mode from its code, or choose a method without gradients.",
    )


def _repeatable_attention(device: torch.device) -> AbstractContextManager[None]:
    """Let attention be computed step by step on an accelerator: fused kernels add gradients in any order there."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(SDPBackend.MATH)


def check_gradients(collection: GradientSums, inventory: Inventory) -> None:
    """Raise NonFiniteError or ModelStructureError naming the first layer whose gradient is NaN, or zero everywhere.

    An expert that no token was routed to has no gradient, which is no error.
    """
    _check_finite(collection, inventory)
    for layer in inventory.layers:
        if layer.pool is None and not bool(layer.view(collection.sums[layer.tensor]).any()):
            raise ModelStructureError(
                f"gradient of layer {layer.name}",
                f"zero for every weight over {collection.windows} windows",
                "a loss that depends on the layer",
                "List the layer under model.ignore in params.yaml, or calibrate with a text that reaches it.",
            )


def _check_finite(collection: GradientSums, inventory: Inventory) -> None:
    for layer in inventory.layers:
        if not all_finite(layer.view(collection.sums[layer.tensor])):
            raise NonFiniteError(
                f"gradient of layer {layer.name}",
                f"NaN or infinity after {collection.windows} windows",
                "finite gradients",
                "Check the checkpoint's weights, or load it in another dtype (model.dtype in params.yaml).",
            )


@contextmanager
def _only_these_differentiable(model: PreTrainedModel, chosen: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let autograd see the chosen parameters alone; flags and gradients are restored at the end."""
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False)
            parameter.grad = None
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required, grad in before:
            parameter.requires_grad_(required)
            parameter.grad = grad


@contextmanager
def _accumulating(parameters: Mapping[str, nn.Parameter], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Add the square of every gradient to `sums` as soon as it is whole, and free it."""

    def add(parameter: Tensor, into: Tensor) -> None:
        assert parameter.grad is not None
        into.add_(parameter.grad.float().div_(LOSS_SCALE).square_())
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(partial(add, into=sums[name])) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _recomputed(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Keep of each block's forward only its inputs: the backward pass runs it again.

    transformers has this too, but for training mode only, in which dropout would change the loss.
    """
    wrapped = list(blocks)

    def again(forward: Callable[..., Any]) -> Callable[..., Any]:
        return partial(checkpoint, forward, use_reentrant=False)

    before = [block.__dict__.get("forward") for block in wrapped]
    try:
        for block in wrapped:
            block.__dict__["forward"] = again(block.forward)
        yield
    finally:
        for block, own in zip(wrapped, before, strict=True):
            del block.__dict__["forward"]
            if own is not None:
                block.__dict__["forward"] = own
