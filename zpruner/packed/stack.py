"""Experts of a mixture that transformers keeps in one parameter, packed one by one in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.errors import InvalidSettingError
from zpruner.kernels import Layout, PackedMatrix, choose
from zpruner.packed.encode import nonzero, parts_of
from zpruner.packed.size import MIN_SPARSITY

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default, _aten.clone.default)
"""What returns the same numbers: nobody writes into them."""


class PackedStack(Tensor):
    """A stack of matrices (experts, ..., ...) that behaves as the tensor would, and holds every matrix packed.

    An expert is taken by its index, as models do that compute one expert after the other: it is expanded alone, or
    multiplied by the kernels where it meets a few rows. Whatever else is done to the stack expands it whole.

    Args:
        matrices: of the experts, alike.
    """

    matrices: tuple[PackedMatrix, ...]

    @staticmethod
    def __new__(cls, matrices: Sequence[PackedMatrix], shape: Sequence[int]) -> PackedStack:
        """Return one without memory of its own."""
        make: Any = Tensor._make_wrapper_subclass
        found: PackedStack = make(cls, tuple(shape), dtype=matrices[0].dtype, device="cpu")
        return found

    def __init__(self, matrices: Sequence[PackedMatrix], shape: Sequence[int]) -> None:
        self.matrices = tuple(matrices)

    @classmethod
    def of(cls, stack: Tensor) -> Tensor:
        """Return a stack of matrices packed, or itself where that would make it no smaller.

        Args:
            stack: any tensor; one of three dimensions on the CPU is packed.
        """
        if stack.ndim != 3 or not stack.numel() or stack.device.type != "cpu":
            return stack
        keeps = [nonzero(matrix) for matrix in stack]
        if sum(int(keep.sum()) for keep in keeps) > (1 - MIN_SPARSITY) * stack.numel():
            return stack
        kernels = choose()
        return cls(
            [
                PackedMatrix(kernels, f"expert {index}", Layout.of(matrix), parts_of(matrix, keep))
                for index, (matrix, keep) in enumerate(zip(stack, keeps, strict=True))
            ],
            stack.shape,
        )

    def expanded(self) -> Tensor:
        """Return the tensor with its zeros."""
        whole = [matrix.expanded(0, matrix.rows) for matrix in self.matrices]
        return (whole[0] if self.ndim == 2 else torch.stack(whole)).view(self.shape)

    def product_with(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return x W^T + bias of one expert, by the kernels where they multiply so few rows."""
        rows, matrix = x.reshape(-1, x.shape[-1]), self.matrices[0]
        if (
            len(rows) > matrix.kernel_rows
            or not matrix.multiplies(x.dtype)
            or (x.requires_grad and torch.is_grad_enabled())
        ):
            return nn.functional.linear(x, self.expanded().to(x.dtype), bias)
        return matrix.multiply(rows, bias).view(*x.shape[:-1], matrix.rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return another stack of the same matrices: nobody writes into them."""
        found = PackedStack(self.matrices, self.shape)
        return nn.Parameter(found, requires_grad=self.requires_grad) if isinstance(self, nn.Parameter) else found

    def __repr__(self) -> str:  # type: ignore[override]
        """Return its shape and dtype: the numbers would have to be expanded."""
        return f"PackedStack({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Multiply by one expert; anything else is torch's."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs or {})
        weight = given.get("weight")
        if func is nn.functional.linear and isinstance(weight, PackedStack) and weight.ndim == 2:
            return weight.product_with(given["input"], given.get("bias"))
        with torch._C.DisableTorchFunctionSubclass():  # or results would be taken for stacks
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Take an expert out, or expand the stack for whatever else is asked."""
        first = args[0] if args else None
        if isinstance(first, PackedStack):
            if func in _SAME:
                return cls(first.matrices, first.shape)
            if func._schema.is_mutable:
                raise InvalidSettingError(
                    "packed experts", f"'{func}', which writes into them", "ordinary ones", "Call `model.dequantize()`."
                )
            if func is _aten.select.int and first.ndim == 3 and args[1] == 0:
                return cls([first.matrices[int(args[2])]], first.shape[1:])

        def plain(value: Any) -> Any:
            if isinstance(value, PackedStack):
                return value.expanded()
            return type(value)(map(plain, value)) if isinstance(value, list | tuple) else value

        return func(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})


def expand_stacks(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put an ordinary parameter in the place of every packed stack.

    Args:
        model: changed in place.
        dtype: of the parameters; None: their own.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if isinstance(parameter, PackedStack):
                whole = parameter.expanded().to(dtype or parameter.dtype)
                setattr(module, name, nn.Parameter(whole, requires_grad=False))


def stacks_of(model: nn.Module) -> dict[str, PackedStack]:
    """Return the packed stacks of a model by name."""
    return {name: found for name, found in model.named_parameters() if isinstance(found, PackedStack)}
