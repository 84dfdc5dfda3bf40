"""What decoder blocks are called with and what they return, as far as a replay needs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Place = tuple[int, int]
"""What a block returned besides the hidden state: the block, and where among its results."""
Key = int | str
"""A positional argument's number, or a keyword."""


@dataclass(frozen=True)
class Call:
    """One call of a block, without its hidden state: the first positional argument, or the keyword `name`."""

    name: str | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    passed: Mapping[Key, Place]
    """The arguments that an earlier block returned."""

    def repeat(self, block: nn.Module, hidden: Tensor, given: Mapping[Place, Tensor] | None = None) -> Any:
        """Call the block again with another hidden state and what earlier blocks return now; return its result."""
        known = given or {}
        new = {key: known[place] for key, place in self.passed.items() if place in known}
        args = [new.get(key, value) for key, value in enumerate(self.args)]
        kwargs = {key: new.get(key, value) for key, value in self.kwargs.items()}
        if self.name is None:
            return block(hidden, *args, **kwargs)
        return block(*args, **{**kwargs, self.name: hidden})

    def tensors(self) -> Iterator[tuple[Key, Tensor]]:
        """Yield the tensors that the block is given besides the hidden state and what earlier blocks returned."""
        for key, value in by_key(self.args, self.kwargs).items():
            if key not in self.passed:
                for tensor in _tensors(value):
                    yield key, tensor


def hidden_of(result: Any) -> Tensor:
    """Return the hidden state among what a block returned: the result, or the first of a tuple."""
    hidden: Tensor = result if isinstance(result, Tensor) else result[0]
    return hidden


def by_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Return the arguments of a call, by number or keyword."""
    found: dict[Key, Any] = dict(enumerate(args))
    return found | dict(kwargs)


def others_of(block: int, result: Any) -> Iterator[tuple[Place, Tensor]]:
    """Yield what a block returned besides the hidden state, as far as it is tensors."""
    for at, value in enumerate(() if isinstance(result, Tensor) else result):
        if at and isinstance(value, Tensor):
            yield (block, at), value


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, those in lists, tuples and dictionaries included."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
