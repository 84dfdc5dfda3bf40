"""Matrix products as a model's code computes them, whichever torch function it uses."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from zpruner.model.sums import Stream

Observer = Callable[[Tensor, Tensor], None]

_CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as")
_GROUPED = ("grouped_mm", "_grouped_mm", "grouped_mm_fallback")


@dataclass(frozen=True)
class _Cast:
    """A weight, and how what it was cast to lies in its memory, which the entry does not keep in use."""

    weight: Tensor
    alive: StorageWeakRef
    stride: tuple[int, ...]
    offset: int


class Products(TorchFunctionMode):
    """While entered, reports every matrix product with a weight.

    Most weights are used through `nn.Linear`, some as `weight @ x` or through `addmm`, stacked ones in a batched or a
    grouped product. All of these end in a few torch functions; intercepting those finds every product without knowing
    the module that holds the weight. A product with a weight that was cast to another dtype is one with the weight. Of
    a stack of matrices every matrix is reported by itself, and in a grouped product only those that multiply at least
    one row.

    Args:
        memory: `memory_of` the weights whose products are of interest; may change while entered.
        observe: called with the matrix as a view (out, in) of the weight's memory, and with what it multiplies,
            (..., in).
        copied: called with a stack of matrices that some are copied out of: products with the copies are not seen.
        added: called with every matrix whose output is about to be added to the residual stream, and the stream; what
            several matrices put out, and a bias, may have been added up by then. None: sums are not looked at.
        scale: called with a weight, as (out, in) or a stack of such; what it returns, (out,), multiplies the products.
        slope: called, when gradients pass back through a product, with the matrix and the gradient of what it put out,
            (..., out).
    """

    def __init__(
        self,
        memory: Container[int],
        observe: Observer,
        copied: Callable[[Tensor], None] = lambda _: None,
        added: Observer | None = None,
        scale: Callable[[Tensor], Tensor] | None = None,
        slope: Observer | None = None,
    ) -> None:
        super().__init__()
        self._added, self._stream, self._slope = added, Stream(), slope
        self._memory, self._observe, self._copied, self._scale = memory, observe, copied, scale
        self._casts: dict[int, _Cast] = {}
        """Memory of what a weight was cast to -> the cast; where that memory is freed, the entry stands for nothing."""

    def begin(self, hidden: Tensor) -> None:
        """Take what a block is given for the residual stream."""
        self._stream.begin(hidden)

    def forget(self) -> None:
        """Let go of weights that were cast and of what matrices put out; to be called when a block returns."""
        self._casts.clear()
        self._stream.clear()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        operands = _operands(getattr(func, "__name__", ""), args, kwargs or {})
        of: list[Tensor] | None = None  # matrices whose output the result is; of the stream, none
        if self._added is not None and getattr(func, "__name__", "") in ("add", "add_"):
            of = self._stream.summed(args, kwargs or {}, self._added)
        scale = None
        follow: Callable[[Tensor], None] | None = None
        if operands is not None:
            left, right, ends = self._uncast(operands[0]), self._uncast(operands[1]), operands[2]
            if right.ndim in (2, 3) and self._is_weight(right):
                self._report(right.mT, left, ends, self._observe)
                of = [right.mT] if right.ndim == 2 else None
                scale = None if self._scale is None else self._scale(right.mT)
                follow = partial(self._report_slope, right.mT, ends, False)
            elif left.ndim in (2, 3) and self._is_weight(left):
                upright = right.ndim > 1
                self._report(left, right.mT if upright else right, None, self._observe)
                scale = None if self._scale is None else self._scale(left)
                scale = scale.unsqueeze(-1) if scale is not None and upright else scale
                follow = partial(self._report_slope, left, None, upright)
        result = func(*args, **(kwargs or {}))
        if self._slope is not None and follow is not None and result.requires_grad:
            result.register_hook(follow)
        result = result if scale is None else result * scale
        if of is not None and self._added is not None:
            self._stream.note(result, of)
        if getattr(func, "__name__", "") in _CASTS and isinstance(result, Tensor):
            weight = args[0]
            if self._is_weight(weight) and memory_of(result) != memory_of(weight):
                alive = StorageWeakRef(result.untyped_storage())
                self._casts[memory_of(result)] = _Cast(weight, alive, result.stride(), int(result.storage_offset()))
        if getattr(func, "__name__", "") in ("__getitem__", "index_select") and isinstance(result, Tensor):
            stack = args[0]
            if stack.ndim == result.ndim == 3 and self._is_weight(stack) and memory_of(result) != memory_of(stack):
                self._copied(stack)
        return result

    def _uncast(self, operand: Tensor) -> Tensor:
        """Return an operand, or the part of the weight that it was cast from."""
        cast = self._casts.get(memory_of(operand))
        if cast is None or cast.alive.expired() or cast.weight.stride() != cast.stride:
            return operand
        offset = cast.weight.storage_offset() + operand.storage_offset() - cast.offset
        return cast.weight.detach().as_strided(operand.shape, operand.stride(), offset)

    def _is_weight(self, operand: Tensor) -> bool:
        return memory_of(operand) in self._memory

    def _report_slope(self, weight: Tensor, ends: Tensor | None, upright: bool, gradient: Tensor) -> None:
        assert self._slope is not None
        self._report(weight, gradient.mT if upright else gradient, ends, self._slope)

    def _report(self, weight: Tensor, inputs: Tensor, ends: Tensor | None, observe: Observer) -> None:
        if weight.ndim == 2:
            observe(weight, inputs)
        elif ends is not None:
            for matrix, rows in zip(weight, _groups(inputs, ends), strict=False):
                if len(rows):
                    observe(matrix, rows)
        else:
            stack = inputs if inputs.ndim > 2 else inputs.unsqueeze(0)
            for matrix, rows in zip(weight, stack.expand(*stack.shape[:-3], len(weight), -1, -1).movedim(-3, 0)):  # noqa: B905
                observe(matrix, rows)


def memory_of(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def _groups(inputs: Tensor, ends: Tensor) -> Iterator[Tensor]:
    """Yield the rows of each group of a grouped product; `ends` has where each group stops."""
    start = 0
    for end in ends.tolist():
        yield inputs[start:end]
        start = end


def _operands(
    name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor | None] | None:
    """Return the factors (..., n, in) and (..., in, out) of a matrix product and where the groups of a grouped one end.

    None where `name` is no such function.
    """

    def take(position: int, keyword: str) -> Any:
        return args[position] if len(args) > position else kwargs[keyword]

    match name:
        case "linear":
            return take(0, "input"), take(1, "weight").mT, None
        case "matmul" | "mm" | "__matmul__":
            return take(0, "input"), take(1, "other" if name == "matmul" else "mat2"), None
        case "bmm":
            return take(0, "input"), take(1, "mat2"), None
        case "__rmatmul__":
            return args[1], args[0], None
        case "addmm":
            return take(1, "mat1"), take(2, "mat2"), None
        case "baddbmm":
            return take(1, "batch1"), take(2, "batch2"), None
        case _ if name in _GROUPED:
            return take(0, "input"), take(1, "weight"), kwargs.get("offs", args[2] if len(args) > 2 else None)
        case _:
            return None
