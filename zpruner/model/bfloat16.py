"""bfloat16 linear layers on processors without bfloat16 arithmetic, by float32 products.

Hardware multiplies bfloat16 exactly, sums in float32 and rounds the result once. torch does the same without such
hardware, but element by element: 7.8 GFLOP/s per core of an AVX2 processor, where float32 products run at 65.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

_PIECE = 1 << 21
"""Weights widened at once: 8 MiB stay in the processor's caches, which took two thirds of the time of a head."""


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether torch has fast bfloat16 products on `device`."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def widen_products(model: nn.Module) -> None:
    """Let the linear layers of `model` multiply bfloat16 operands as float32; weights and results stay bfloat16."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = WideLinear


class WideLinear(nn.Linear):
    """A linear layer that multiplies bfloat16 operands as float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's output, in the dtype of its input."""
        return linear(input, self.weight, self.bias)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
    """Return `input @ weight.T + bias`, as `torch.nn.functional.linear` does, and as visible to whoever intercepts it.

    Args:
        input: (..., in).
        weight: (out, in).
        bias: (out,) or None.
    """
    if has_torch_function((input, weight)):
        found: Tensor = handle_torch_function(linear, (input, weight), input, weight, bias)
        return found
    if input.dtype != torch.bfloat16 or weight.dtype != torch.bfloat16:
        return nn.functional.linear(input, weight, bias)
    wide = input.float().reshape(-1, input.shape[-1])  # a product of matrices, not a batch of them
    rows = max(1, _PIECE // weight.shape[1])
    biases = [None] * -(-len(weight) // rows) if bias is None else bias.split(rows)
    pieces = [
        nn.functional.linear(wide, part.float(), None if added is None else added.float()).to(input.dtype)
        for part, added in zip(weight.split(rows), biases, strict=True)
    ]
    found = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)
    return found.reshape(*input.shape[:-1], len(weight))
