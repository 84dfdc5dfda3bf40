"""What a block's costliest operations gave in one pass, for later passes over the same tokens that begin alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_COSTLY = ("linear", "addmm", "scaled_dot_product_attention")
"""Functions of torch that take most of a forward pass and give no more than a few numbers per token and channel."""

RECALLED = 1 << 29
"""Bytes of results that a replay holds of the current hidden states, and as many of the dense model's."""


@dataclass(frozen=True)
class _Result:
    """What a function gave, of an argument of what shape, and the tensor's version: it must not be changed since."""

    name: str
    shape: torch.Size
    value: Tensor
    version: int


class Recall:
    """Results of the operations that a block begins with, batch by batch, up to a number of bytes in all.

    A block is passed several times while its sub-modules are pruned one after another, and up to the first product
    with a weight that was pruned since, every pass computes the same. What is recalled has the same bits.

    Args:
        room: bytes of results that may be held.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._known: dict[int, list[_Result]] = defaultdict(list)

    def passing(self, batch: int, note: bool) -> _Recalling:
        """Return a context manager to pass a batch through the block in; `note`: also note new results."""
        return _Recalling(self, self._known[batch], note)

    def forget(self, batch: int) -> None:
        """Let go of the results of one batch."""
        for result in self._known.pop(batch, ()):
            self._room += result.value.nbytes

    def forget_all(self) -> None:
        """Let go of all results: weights that they come from are going to change."""
        for batch in list(self._known):
            self.forget(batch)

    def take(self, size: int) -> bool:
        """Return whether there is room for a result of `size` bytes, which is then taken."""
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits


class _Recalling(TorchFunctionMode):
    """While entered, results that are known stand in for operations, and others become known until `close`.

    What watches products is to be entered within, and sees all of them.
    """

    def __init__(self, recall: Recall, known: list[_Result], note: bool) -> None:
        super().__init__()
        self._recall, self._known, self._open, self._at = recall, known, note, 0

    def close(self) -> None:
        """Note no more results: what is computed from here on comes from weights that are going to change."""
        self._open = False

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _COSTLY or not args or not isinstance(args[0], Tensor):
            return func(*args, **(kwargs or {}))
        at, self._at = self._at, self._at + 1
        if at < len(self._known):
            known = self._known[at]
            if (known.name, known.shape, known.version) == (name, args[0].shape, known.value._version):
                return known.value
        result = func(*args, **(kwargs or {}))
        last = self._open and at == len(self._known)
        if last and not result.is_inference() and self._recall.take(result.nbytes):
            self._known.append(_Result(name, args[0].shape, result, result._version))
        return result
