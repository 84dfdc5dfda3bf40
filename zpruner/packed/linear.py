"""A linear layer whose weight stays packed in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.kernels import DenseMatrix, Layout, PackedMatrix, Parts, choose
from zpruner.kernels.expand import expand_rows
from zpruner.model.bfloat16 import linear, multiplies_bfloat16
from zpruner.packed.stack import expand_stacks
from zpruner.runtime import pages

FEW_ROWS = 4
_SLOW = (torch.bfloat16, torch.float16)
_PARTS = ("weight_bitmask", "weight_values", "weight_offsets", "weight_scales")
_PIECES = {64: 1 << 22, 1 << 62: 1 << 26}
"""Rows of x, at most -> bytes of weights expanded at once. Few rows: the weights are multiplied while caches hold them;
many: a product of large pieces is the faster one."""


class Scratch(local):
    """Room for expanded weights, kept from one product to the next, for every thread: fresh pages cost more than the
    products of a few rows. Copies of a model have their own."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def take(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return room for (rows, columns) of `dtype`, whatever is in it."""
        size = rows * columns * dtype.itemsize
        if self._room.numel() < size:
            self._room = pages.empty(size)
        return self._room[:size].view(dtype).view(rows, columns)

    def __reduce__(self) -> tuple[type[Scratch], tuple[()]]:
        return Scratch, ()


class KernelLinear(nn.Linear):
    """A dense linear layer of a packed model, such as its head: kernels multiply a few rows of 16-bit inputs.

    torch's own product of one row is slow in these formats.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's output, in the dtype of its input."""
        rows = input.numel() // max(1, self.in_features)
        plain = input.device.type != "cpu" or self.weight.device.type != "cpu" or self.weight.dtype not in _SLOW
        if plain or rows > FEW_ROWS or (input.requires_grad and torch.is_grad_enabled()):
            return _dense_product(input.device)(input, self.weight, self.bias)
        matrix = DenseMatrix(choose(), self.weight)
        if not matrix.multiplies(input.dtype):
            return _dense_product(input.device)(input, self.weight, self.bias)
        y = matrix.multiply(input.reshape(rows, self.in_features), self.bias)
        return y.view(*input.shape[:-1], self.out_features)


class PackedLinear(nn.Module):
    """y = x W^T + bias with W packed: `zpruner.kernels` multiply a few rows, more of them meet W expanded piecewise.

    A few rows: within the rounding of float32 sums in another order. More: as a dense layer, piece by piece. Off the
    CPU, and where x needs a gradient, W is expanded whole.

    Args:
        name: of the layer, for errors.
        layout: of W, (out_features, in_features).
        parts: of W; buffers of the layer, `weight_` before their names.
        bias: the layer's, or None.
    """

    weight_values: Tensor
    weight_bitmask: Tensor | None
    weight_offsets: Tensor | None
    weight_scales: Tensor | None
    bias: nn.Parameter | None

    def __init__(self, name: str, layout: Layout, parts: Parts, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.name, self.out_features, self.in_features = name, layout.rows, layout.columns
        self._layout = layout
        self.register_buffer("weight_values", parts.values)
        self.register_buffer("weight_bitmask", parts.bitmask)
        self.register_buffer("weight_offsets", parts.offsets)
        self.register_buffer("weight_scales", parts.scales)
        self.register_parameter("bias", bias)
        self._matrix: PackedMatrix | None = None
        self.scratch = Scratch()
        """May be shared by the layers of a model."""

    @property
    def layout(self) -> Layout:
        """Of the weight; where values are the weights, they have its dtype."""
        return self._layout if self._layout.codes else replace(self._layout, dtype=self.weight_values.dtype)

    @property
    def parts(self) -> Parts:
        """The tensors of the packed weight."""
        return Parts(self.weight_values, self.weight_bitmask, self.weight_offsets, self.weight_scales)

    @property
    def weight(self) -> Tensor:
        """The weight with its zeros, (out_features, in_features): made anew whenever it is asked for."""
        if self.weight_values.device.type == "cpu":
            return self.matrix.expanded(0, self.out_features)
        return expand_rows(self.layout, self.parts, 0, self.out_features)

    @property
    def matrix(self) -> PackedMatrix:
        """What the kernels multiply by.

        Raises:
            ArtifactError: the buffers are not a packed matrix.
        """
        if self._matrix is None:
            self._matrix = PackedMatrix(choose(), f"layer {self.name}", self.layout, self.parts)
        return self._matrix

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's output, (..., out_features) in the dtype of `input`, (..., in_features)."""
        if input.device.type != "cpu" or (input.requires_grad and torch.is_grad_enabled()):
            return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)
        x, matrix = input.reshape(-1, self.in_features), self.matrix
        if len(x) <= matrix.kernel_rows and matrix.multiplies(input.dtype):
            y = matrix.multiply(x, self.bias)
        else:
            y = self._expanded_product(x)
        return y.view(*input.shape[:-1], self.out_features)

    def _expanded_product(self, x: Tensor) -> Tensor:
        """Return the product with W expanded piece by piece."""
        multiply = _dense_product(x.device)
        matrix, bias = self.matrix, self.bias
        size = next(size for most, size in _PIECES.items() if len(x) <= most)
        rows = max(1, size // max(1, self.in_features * matrix.dtype.itemsize))
        pieces = []
        for start in range(0, self.out_features, rows):
            stop = min(start + rows, self.out_features)
            weight = self.scratch.take(stop - start, self.in_features, matrix.dtype)
            matrix.expand_into(weight, start, stop)
            pieces.append(multiply(x, weight.to(x.dtype), None if bias is None else bias[start:stop]))
        if not pieces:
            return x.new_empty(len(x), 0)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        stored = (self.weight_values.numel() - self.layout.padding) / max(1, self.out_features * self.in_features)
        codes = self.layout.codes
        kept = 2 * stored if codes is not None and codes.bits == 4 else stored
        kind = "" if codes is None else f", bits={codes.bits}, group={codes.group or 'row'}"
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, kept={kept:.3f}{kind}"

    # Whatever replaces a buffer or its contents lets go of the matrix: it is checked and bound again at its next use.

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PARTS:
            self.__dict__["_matrix"] = None
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedLinear:
        self._matrix = None
        before, layout = self.weight_scales, self.layout
        kept = self.weight_values.numel() - layout.padding
        found: PackedLinear = super()._apply(fn, recurse)
        if before is not None and self.weight_scales is not None:  # integers times their scales are what they were
            self.weight_scales = before.to(self.weight_scales.device)
        elif self.weight_values.dtype != layout.dtype:  # its padding is of as many bytes
            padding = self.weight_values.new_zeros(self.layout.padding)
            self.weight_values = torch.cat([self.weight_values[:kept], padding])
        return found

    def _load_from_state_dict(self, *args: Any) -> None:
        self._matrix = None
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_matrix": None}


def _dense_product(device: torch.device) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Return torch's product, or that by float32 on a processor without bfloat16 arithmetic."""
    return nn.functional.linear if multiplies_bfloat16(device) else linear


def restore_dense(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put an ordinary linear layer in the place of every packed one, and ordinary stacks of experts.

    Args:
        model: changed in place.
        dtype: of the weights; None: their own.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, KernelLinear):
            module.__class__ = nn.Linear  # type: ignore[assignment]
        elif isinstance(module, PackedLinear):
            dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            dense.weight = nn.Parameter(module.weight.to(dtype or module.layout.dtype), requires_grad=False)
            dense.register_parameter("bias", module.bias)
            model.set_submodule(name, dense)
    expand_stacks(model, dtype)
