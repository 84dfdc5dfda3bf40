"""Matrices that the kernels multiply by: checked, and bound to the memory of their tensors."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from zpruner.errors import ShapeMismatchError
from zpruner.kernels.checks import check_packed
from zpruner.kernels.choice import Kernels
from zpruner.kernels.expand import expand_rows
from zpruner.kernels.library import (
    KERNEL_ROWS,
    LARGE_BYTES,
    LARGE_KERNEL_ROWS,
    VALUE_TYPES,
    MatrixStruct,
    ProductStruct,
)
from zpruner.kernels.parts import Layout, Parts, starts_of


class _Matrix(ABC):
    """A weight on the CPU and the structure that tells the library where it lies.

    The tensors must keep their memory and contents while it is used.
    """

    def __init__(self, kernels: Kernels, rows: int, columns: int) -> None:
        self.kernels, self.rows, self.columns = kernels, rows, columns
        self._struct = MatrixStruct(rows=rows, columns=columns)
        self._reference = ctypes.byref(self._struct)

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of its values."""

    @cached_property
    def kernel_rows(self) -> int:
        """Rows of x up to which a kernel is faster than expanding the weights for torch."""
        large = self.rows * self.columns * self.dtype.itemsize >= LARGE_BYTES
        return LARGE_KERNEL_ROWS if large else KERNEL_ROWS

    @abstractmethod
    def expanded(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop), (stop - start, columns), zeros in place."""

    def multiplies(self, dtype: torch.dtype) -> bool:
        """Whether a kernel multiplies it by x of `dtype`; else torch does, with the weights expanded."""
        return self.kernels.library is not None and self.dtype in VALUE_TYPES and dtype in VALUE_TYPES

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return x W^T + bias, (batch, rows) in x's dtype; sums are float32.

        Args:
            x: (batch, columns), its rows contiguous.
            bias: (rows), or None.

        Raises:
            ShapeMismatchError: x or the bias does not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.columns or (bias is not None and tuple(bias.shape) != (self.rows,)):
            raise ShapeMismatchError(
                "a packed product",
                f"x {tuple(x.shape)} and bias {None if bias is None else tuple(bias.shape)}",
                f"(batch, {self.columns}) and ({self.rows},)",
                "Give it the inputs of this layer.",
            )
        if not self.multiplies(x.dtype) or (bias is not None and bias.dtype not in VALUE_TYPES):
            weight = self.expanded(0, self.rows).to(x.dtype)
            return torch.nn.functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        if x.stride(1) != 1 or x.device.type != "cpu":
            x = x.cpu().contiguous()
        if bias is not None:
            bias = bias.detach().contiguous()
        y = torch.empty(x.shape[0], self.rows, dtype=x.dtype)
        kind = VALUE_TYPES[x.dtype]
        product = ProductStruct(
            x.data_ptr(),
            y.data_ptr(),
            None if bias is None else bias.data_ptr(),
            x.shape[0],
            x.stride(0),
            self.rows,
            kind,
            kind if bias is None else VALUE_TYPES[bias.dtype],
        )
        assert self.kernels.library is not None
        failed = self.kernels.library.zp_matmul(self._reference, product, self.kernels.isa, torch.get_num_threads())
        if failed:
            raise MemoryError(f"no memory for {x.shape[0]} rows of {self.columns} inputs")
        return y


class PackedMatrix(_Matrix):
    """A packed matrix.

    Args:
        kernels: what multiplies.
        where: names the matrix in errors.
        layout: of the matrix.
        parts: its tensors.

    Raises:
        ArtifactError: the tensors are not a packed matrix. No kernel has followed an offset by then.
    """

    def __init__(self, kernels: Kernels, where: str, layout: Layout, parts: Parts) -> None:
        super().__init__(kernels, layout.rows, layout.columns)
        self.layout, self.parts = layout, parts.on_cpu()
        counts = check_packed(where, layout, self.parts)
        struct, found = self._struct, self.parts
        struct.values, struct.value_type = found.values.data_ptr(), VALUE_TYPES.get(layout.dtype, -1)
        if found.bitmask is not None and found.offsets is not None:
            struct.bitmask = found.bitmask.data_ptr()
            struct.offsets, struct.offset_bytes = found.offsets.data_ptr(), found.offsets.element_size()
        if layout.codes is not None and found.scales is not None:
            self._groups = starts_of(layout.scales(counts))
            struct.groups, struct.scales = self._groups.data_ptr(), found.scales.data_ptr()
            struct.bits, struct.group = layout.codes.bits, layout.codes.group
            struct.scale_type = VALUE_TYPES[found.scales.dtype]

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return self.layout.dtype

    @property
    def _torch_expands(self) -> bool:
        coded = self.layout.codes is not None
        return self.kernels.library is None or (coded and self.dtype not in VALUE_TYPES)

    def expanded(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop), (stop - start, columns), zeros in place."""
        if self._torch_expands:
            return expand_rows(self.layout, self.parts, start, stop)
        out = torch.empty(stop - start, self.columns, dtype=self.dtype)
        self.expand_into(out, start, stop)
        return out

    def expand_into(self, out: Tensor, start: int, stop: int) -> None:
        """Write rows [start, stop) to `out`, contiguous (stop - start, columns) of the weights' dtype."""
        if (
            not 0 <= start <= stop <= self.rows
            or tuple(out.shape) != (stop - start, self.columns)
            or out.dtype != self.dtype
            or not out.is_contiguous()
        ):
            raise ShapeMismatchError(
                "an expansion",
                f"{out.dtype} {tuple(out.shape)} for rows {start} to {stop}",
                f"contiguous {self.dtype} of rows within {self.rows} by {self.columns} columns",
                "Give it room for what it writes.",
            )
        if self._torch_expands:
            out.copy_(expand_rows(self.layout, self.parts, start, stop))
            return
        assert self.kernels.library is not None
        failed = self.kernels.library.zp_expand(
            self._reference,
            start,
            stop,
            self.dtype.itemsize,
            out.data_ptr(),
            self.kernels.isa,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError(f"no memory for a row of {self.columns} weights")


class DenseMatrix(_Matrix):
    """A weight (rows, columns) with no bitmask, multiplied by the same code: the control in comparisons."""

    def __init__(self, kernels: Kernels, weight: Tensor) -> None:
        rows, columns = weight.shape
        super().__init__(kernels, rows, columns)
        self.weight = weight.detach().cpu().contiguous()
        self._struct.values = self.weight.data_ptr()
        self._struct.value_type = VALUE_TYPES.get(weight.dtype, -1)

    @property
    def dtype(self) -> torch.dtype:
        """Of its values."""
        return self.weight.dtype

    def expanded(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop)."""
        return self.weight[start:stop]
