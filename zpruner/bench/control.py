"""The controls of a packed model: the same weights with their zeros, multiplied by torch and by the packed kernels."""

from __future__ import annotations

import copy
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.kernels import KERNEL_ROWS, DenseMatrix, choose
from zpruner.model import table_bytes
from zpruner.packed.linear import KernelLinear, PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ControlLinear(nn.Module):
    """A dense linear layer multiplied by the code of the packed ones, without a bitmask."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.matrix = DenseMatrix(choose(), layer.weight)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's output."""
        rows = input.numel() // max(1, self.matrix.columns)
        if rows > KERNEL_ROWS or not self.matrix.multiplies(input.dtype):
            found: Tensor = self.layer(input)
            return found
        y = self.matrix.multiply(input.reshape(rows, -1), self.layer.bias)
        return y.view(*input.shape[:-1], self.matrix.rows)


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that shares its weights: another set of modules, no more memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def control(dense: PreTrainedModel, names: frozenset[str]) -> PreTrainedModel:
    """Return a copy of `dense`, sharing its weights, whose layers of these names are multiplied by the kernels."""
    model = sharing(dense)
    for name in names:
        linear: Any = model.get_submodule(name)
        model.set_submodule(name, ControlLinear(linear))
    for module in model.modules():  # as in a packed model
        if type(module) is nn.Linear:
            module.__class__ = KernelLinear
    return model


def packed_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of a model's packed layers."""
    return frozenset(name for name, module in model.named_modules() if isinstance(module, PackedLinear))


def linear_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of a model's linear layers but the head."""
    head = model.get_output_embeddings()
    return frozenset(name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head)


def read_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of weights that computing one token reads: all but tables from which one row is taken."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *_buffers(model))}
    return sum(tensor.nbytes for tensor in tensors.values()) - table_bytes(model)


def _buffers(model: nn.Module) -> list[Tensor]:
    return [tensor for module in model.modules() if isinstance(module, PackedLinear) for tensor in module.buffers()]


def bandwidth(seconds: float = 0.5) -> float:
    """Return the bytes a second that the kernels read from memory with torch's threads, the best of some runs."""
    weight = torch.zeros(8192, 8192, dtype=torch.bfloat16)  # 134 MB: more than caches hold
    matrix, x = DenseMatrix(choose(), weight), torch.zeros(1, 8192, dtype=torch.bfloat16)
    best, end = float("inf"), perf_counter() + seconds
    while best == float("inf") or perf_counter() < end:
        start = perf_counter()
        matrix.multiply(x)
        best = min(best, perf_counter() - start)
    return weight.nbytes / best
