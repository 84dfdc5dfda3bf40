"""What decoder blocks are called with and what they return, as far as a replay needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

Output = tuple[int, int]
"""What a block returned besides the hidden state: the block, and where among its results."""
Key = int | str
"""A positional argument's number, or a keyword."""


@dataclass(frozen=True)
class Call:
    """One call of a block, without its hidden state: the first positional argument, or the keyword `name`."""

    name: str | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    passed: Mapping[Key, Output]
    """The arguments that an earlier block returned."""

    def repeat(self, block: Callable[..., Any], hidden: Tensor, given: Mapping[Output, Tensor] | None = None) -> Any:
        """Call the block again with another hidden state; return its result.

        `given` has what earlier blocks return now; None: what they returned when the call was recorded.
        """
        new = {} if given is None else {key: given[place] for key, place in self.passed.items()}
        args = [new.get(key, value) for key, value in enumerate(self.args)]
        kwargs = {key: new.get(key, value) for key, value in self.kwargs.items()}
        if self.name is None:
            return block(hidden, *args, **kwargs)
        return block(*args, **{**kwargs, self.name: hidden})

    def tensors(self) -> list[tuple[Key, Tensor]]:
        """Return the tensors that the block is given besides the hidden state and what earlier blocks returned."""
        arguments = by_key(self.args, self.kwargs).items()
        return [(key, tensor) for key, value in arguments if key not in self.passed for tensor in _tensors(value)]


@contextmanager
def left_out(blocks: Sequence[nn.Module], beside: Mapping[int, int | None]) -> Iterator[None]:
    """Let blocks return the hidden state that they are given, until the context ends: their work is left out.

    Args:
        blocks: of the decoder.
        beside: index of a block -> how many empty places it returns beside the hidden state; None: that alone.
    """

    def instead(places: int | None, *args: Any, **kwargs: Any) -> Any:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        return hidden if places is None else (hidden, *[None] * places)

    with called_instead(blocks, {index: partial(instead, places) for index, places in beside.items()}):
        yield


@contextmanager
def called_instead(blocks: Sequence[nn.Module], forwards: Mapping[int, Callable[..., Any]]) -> Iterator[None]:
    """Call the functions `forwards`, by the block's index, in place of what blocks compute, until the context ends."""
    before = {index: blocks[index].__dict__.get("forward") for index in forwards}
    try:
        for index, forward in forwards.items():
            blocks[index].__dict__["forward"] = forward
        yield
    finally:
        for index, own in before.items():
            blocks[index].__dict__.pop("forward", None)
            if own is not None:
                blocks[index].__dict__["forward"] = own


def hidden_of(result: Any) -> Tensor:
    """Return the hidden state among what a block returned: the result, or the first of a tuple."""
    hidden: Tensor = result if isinstance(result, Tensor) else result[0]
    return hidden


def by_key(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Key, Any]:
    """Return the arguments of a call, by number or keyword."""
    found: dict[Key, Any] = dict(enumerate(args))
    return found | dict(kwargs)


def others_of(block: int, result: Any) -> Iterator[tuple[Output, Tensor]]:
    """Yield what a block returned besides the hidden state, as far as it is tensors."""
    for at, value in enumerate(() if isinstance(result, Tensor) else result):
        if at and isinstance(value, Tensor):
            yield (block, at), value


def _tensors(value: Any, seen: tuple[object, ...] = ()) -> Iterator[Tensor]:
    """Yield the tensors in a value: in lists, tuples and dictionaries, and in the attributes of other objects."""
    if isinstance(value, Tensor):
        yield value
        return
    if any(value is other for other in seen) or isinstance(value, nn.Module | type | ModuleType | FunctionType):
        return
    if isinstance(value, Mapping):
        items: Iterable[Any] = value.values()
    elif isinstance(value, list | tuple | set):
        items = value
    else:
        items = getattr(value, "__dict__", {}).values()
    for item in items:
        yield from _tensors(item, (*seen, value))
