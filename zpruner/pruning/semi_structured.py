"""Weights of which 2 of every 4 stay, multiplied by torch's semi-structured kernels on an NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from zpruner.errors import InvalidSettingError
from zpruner.evaluate.storage import satisfies
from zpruner.packed.linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PATTERN = "2:4"
_CAPABILITY = (8, 0)
"""The least that has such kernels."""
_TYPES = (torch.bfloat16, torch.float16)
_MULTIPLES = (32, 64)
"""Of outputs and inputs, that torch takes."""


def use_semi_structured(model: PreTrainedModel) -> int:
    """Hand the linear layers that torch's 2:4 kernels can multiply by to them; the others stay as they are.

    They are for many rows at once, from about a thousand: one row takes longer than by dense weights.

    Args:
        model: on an NVIDIA GPU; packed layers and plain ones are replaced in place.

    Returns:
        How many layers were replaced.

    Raises:
        InvalidSettingError: no such GPU, no 16-bit weights, or no layer of that pattern and of sizes that torch takes.
    """
    _check(model.device, model.dtype)
    count = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, PackedLinear | nn.Linear):
            continue
        weight = module.weight.detach()
        rows, columns = weight.shape
        if rows % _MULTIPLES[0] or columns % _MULTIPLES[1] or weight.dtype not in _TYPES or not satisfies(weight, 2, 4):
            continue
        layer = nn.Linear(columns, rows, bias=False, device="meta")
        layer.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(weight.contiguous()), requires_grad=False)
        layer.register_parameter("bias", module.bias)
        model.set_submodule(name, layer)
        count += 1
    if not count:
        raise InvalidSettingError(
            "kernel",
            f"'{PATTERN}' for a model without a fitting layer",
            f"weights that keep 2 of every 4, with multiples of {_MULTIPLES[0]} outputs and {_MULTIPLES[1]} inputs",
            f"Leave kernel out, or prune with sparsity='{PATTERN}'.",
        )
    return count


def _check(device: torch.device, dtype: torch.dtype) -> None:
    able = device.type == "cuda" and torch.version.cuda is not None
    if not able or torch.cuda.get_device_capability(device) < _CAPABILITY:
        expected = f"an NVIDIA GPU of compute capability {'.'.join(map(str, _CAPABILITY))} or later"
        action = "Leave kernel out: packed weights of every pattern are multiplied as such on a CPU."
        raise InvalidSettingError("kernel", f"'{PATTERN}' on '{device}'", expected, action)
    if dtype not in _TYPES:
        got = f"'{PATTERN}' for weights of {str(dtype).removeprefix('torch.')}"
        raise InvalidSettingError("kernel", got, "bfloat16 or float16", "Pass dtype='bfloat16'.")
