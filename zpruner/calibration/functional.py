"""A decoder block as a function of its layers' weights, through which gradients pass."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from zpruner.calibration.calls import hidden_of
from zpruner.calibration.replay import BlockReplay


class BlockFunction:
    """A block as its weights are now, but for those that a call is given.

    It computes as the model does, but in float32 where that is float16, in which small gradients vanish.

    Args:
        replay: at this block; its hidden states are what the block is called with.
        block: its index; its weights must be in memory. They are copied.
    """

    def __init__(self, replay: BlockReplay, block: int) -> None:
        self._replay, self._block = replay, block
        self._module = replay.blocks[block]
        self._layers = {layer.name: layer for layer in replay.inventory.layers if layer.block == block}
        self._prefix = f"{replay.inventory.blocks}.{block}."
        tensors = chain(self._module.named_parameters(), self._module.named_buffers())
        self._fixed = {name: _apart(tensor.detach()) for name, tensor in tensors}

    def __call__(self, weights: Mapping[str, Tensor], index: int) -> Tensor:
        """Return the block's output, (windows, seqlen, width).

        Args:
            weights: of any of the block's layers, float32 (out, in).
            index: of the batch.
        """
        stored = dict(self._fixed)
        for name, weight in weights.items():
            layer = self._layers[name]
            tensor = layer.tensor.removeprefix(self._prefix)
            if stored[tensor] is self._fixed[tensor]:
                stored[tensor] = self._fixed[tensor].clone()
            layer.view(stored[tensor]).copy_(weight)

        def run(*args: Any, **kwargs: Any) -> Any:
            return functional_call(self._module, stored, _apart(args), _apart(kwargs))

        return hidden_of(self._replay.repeat(self._block, index, run))


def _apart(value: Any) -> Any:
    """Return a value with a copy of every floating-point tensor in it; float16 becomes float32."""
    match value:
        case Tensor() if value.is_floating_point():
            return value.to(torch.float32 if value.dtype == torch.float16 else value.dtype, copy=True)
        case list() | tuple() if type(value) in (list, tuple):
            return type(value)(map(_apart, value))
        case dict():
            return {key: _apart(each) for key, each in value.items()}
    return value
