"""The controls of a packed model: the same weights with their zeros, multiplied by torch and by the packed kernels.

Integers of a control are rounded to the nearest: it has the bytes and the speed of dense quantised weights, not the
quality of any method.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from zpruner.kernels import KERNEL_ROWS, Codes, DenseMatrix, Layout, Parts, choose
from zpruner.model import table_bytes
from zpruner.packed.encode import coded_parts
from zpruner.packed.linear import KernelLinear, PackedLinear, Scratch
from zpruner.runtime import pages

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


class TorchInt8Linear(nn.Module):
    """A linear layer whose weight torch multiplies as int8 with a scale per row."""

    weight: Tensor
    scales: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        parts = rounded(layer.weight, Codes(8, 0))[1]
        assert parts.scales is not None
        weight = pages.copied(parts.values[: layer.weight.numel()].view(layer.weight.shape))
        self.register_buffer("weight", weight)
        self.register_buffer("scales", parts.scales.to(layer.weight.dtype))
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's output."""
        y = torch._weight_int8pack_mm(input.reshape(-1, input.shape[-1]), self.weight, self.scales)
        y = y if self.bias is None else y + self.bias
        return y.view(*input.shape[:-1], -1)


def rounded(weight: Tensor, codes: Codes) -> tuple[Layout, Parts]:
    """Return a weight (rows, columns) as integers, every number rounded to the nearest, nothing left out.

    Args:
        weight: of a floating type.
        codes: of the integers.
    """
    (rows, columns), most = weight.shape, 2 ** (codes.bits - 1) - 1
    size = codes.group or max(1, columns)
    groups = nn.functional.pad(weight.detach().float(), (0, -columns % size)).view(rows, -1, size)
    scales = (groups.abs().amax(dim=2) / most).to(torch.bfloat16 if codes.group else torch.float32)
    integers = (groups / scales.float().unsqueeze(2)).nan_to_num().round().clamp(-most, most).to(torch.int8)
    layout = Layout(rows, columns, weight.dtype, False, codes)
    return layout, coded_parts(layout, integers.view(rows, -1)[:, :columns], scales.view(-1), None)


def sharing(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that shares its weights: another set of modules, no more memory."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def control(dense: PreTrainedModel, layers: Mapping[str, Codes | None]) -> PreTrainedModel:
    """Return a copy of `dense`, sharing its weights, whose layers of these names are multiplied by the kernels.

    Args:
        dense: a model with linear layers.
        layers: name -> the integers that its weight is rounded to; None: as it is.
    """
    model, scratch = sharing(dense), Scratch()
    for name, codes in layers.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        if codes is None:
            model.set_submodule(name, ControlLinear(layer))
        else:
            layout, parts = rounded(layer.weight, codes)
            parts = replace(parts, values=pages.copied(parts.values))
            packed = PackedLinear(name, layout, parts, layer.bias)
            packed.scratch = scratch
            model.set_submodule(name, packed)
    for module in model.modules():  # as in a packed model
        if type(module) is nn.Linear:
            module.__class__ = KernelLinear
    return model


def torch_int8(dense: PreTrainedModel, names: Iterable[str]) -> PreTrainedModel:
    """Return a copy of `dense` whose layers of these names torch multiplies as int8."""
    model = sharing(dense)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(name, TorchInt8Linear(layer))
    return model


def packed_layers(model: PreTrainedModel) -> dict[str, Codes | None]:
    """Return the names of a model's packed layers, and how integers stand for their weights."""
    return {name: module.layout.codes for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def linear_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of a model's linear layers but the head."""
    head = model.get_output_embeddings()
    return frozenset(name for name, module in model.named_modules() if type(module) is nn.Linear and module is not head)


def read_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of weights that computing one token reads: all but tables from which one row is taken."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *_buffers(model))}
    return sum(tensor.nbytes for tensor in tensors.values()) - table_bytes(model)


def _buffers(model: nn.Module) -> list[Tensor]:
    kinds = (PackedLinear, TorchInt8Linear)
    return [tensor for module in model.modules() if isinstance(module, kinds) for tensor in module.buffers()]


def bandwidth(seconds: float = 0.5) -> float:
    """Return the bytes a second that the kernels read from memory with torch's threads, the best of some runs."""
    weight = pages.copied(torch.ones(8192, 8192, dtype=torch.bfloat16))  # 134 MB: more than caches hold
    matrix, x = DenseMatrix(choose(), weight), torch.zeros(1, 8192, dtype=torch.bfloat16)
    best, end = float("inf"), perf_counter() + seconds
    while best == float("inf") or perf_counter() < end:
        start = perf_counter()
        matrix.multiply(x)
        best = min(best, perf_counter() - start)
    return weight.nbytes / best
