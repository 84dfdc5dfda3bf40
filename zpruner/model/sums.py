"""What matrices put out, and the residual stream that it is added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Stream:
    """The residual stream of a block: its input, and every sum of the stream and what matrices put out.

    Tensors are recognised by their memory, which is not kept in use.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[StorageWeakRef, int, list[Tensor]]] = {}
        """Address of a tensor -> its memory, its size, and the matrices that have put it out; of the stream, none."""

    def begin(self, hidden: Tensor) -> None:
        """Take `hidden` for the stream."""
        self.note(hidden, [])

    def note(self, output: Tensor, matrices: list[Tensor]) -> None:
        """Note that `output` is what `matrices` (out, in) put out, added up."""
        self._known[output.data_ptr()] = (StorageWeakRef(output.untyped_storage()), output.numel(), matrices)

    def summed(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], added: Callable[[Tensor, Tensor], None]
    ) -> list[Tensor] | None:
        """Report a sum that is about to be computed.

        Args:
            args, kwargs: of the sum.
            added: called with each matrix whose output is added to the stream, and the stream.

        Returns:
            The matrices whose outputs alone it adds up, up to a bias; none where it is the stream; None where it is
            something else.
        """
        operands = [*args, *kwargs.values()]
        if len(operands) != 2 or not all(isinstance(operand, Tensor) for operand in operands):
            return None
        found = [self._find(operand) for operand in operands]
        for matrices, stream, other in ((found[0], found[1], operands[1]), (found[1], found[0], operands[0])):
            if matrices and stream == []:
                for matrix in matrices:
                    added(matrix, other)
                return []
            if matrices and stream is None and other.ndim == 1:
                return matrices
        return [*found[0], *found[1]] if found[0] and found[1] else None

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()

    def _find(self, tensor: Tensor) -> list[Tensor] | None:
        alive, numel, matrices = self._known.get(tensor.data_ptr(), (None, 0, []))
        return matrices if alive is not None and not alive.expired() and numel == tensor.numel() else None
