"""One forward pass of a decoder, watched: what every block is called with and hands on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zpruner.calibration.blocks import DecoderBlocks
from zpruner.calibration.calls import Call, Key, Output, by_key, hidden_of, others_of


class Pass:
    """What one forward pass calls the blocks with.

    Args:
        blocks: of the model.
        check: call every block again and compare.
        compare: note what the blocks are given, to be compared with another pass.
        disturb: put another input in place of the first block's.
    """

    def __init__(
        self, blocks: DecoderBlocks, *, check: bool = False, compare: bool = False, disturb: bool = False
    ) -> None:
        self.calls: list[list[Call]] = [[] for _ in range(len(blocks.modules))]
        self.given: list[list[tuple[Key, Tensor]]] = [[] for _ in range(len(blocks.modules))]
        """With `compare`, what each block is given that no earlier block has made."""
        self.written: dict[int, Tensor] = {}
        """With `compare`, what blocks left in an argument that all of them are given; a replay finds it there, too."""
        self._returned: dict[int, tuple[Output, Tensor]] = {}  # holds the tensors, so that no identity is reused
        self._beside: dict[int, int | None] = {}
        self._check, self._compare, self._disturb = check, compare, disturb
        self.first: Tensor
        """The input of the first block that is called."""
        self._first: int | None = None
        self._blocks, self._again = blocks, False
        self._input: Tensor | None = None
        self._last: Tensor | None = None

    def before(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Note that a block is called. Returns what to call it with instead, or None."""
        if self._again:
            return None
        if args:
            name, hidden, others, named = None, args[0], args[1:], dict(kwargs)
        else:
            name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
            hidden, others, named = kwargs[name], (), {key: value for key, value in kwargs.items() if key != name}
        known = {key: self._returned.get(id(value)) for key, value in by_key(others, named).items()}
        passed = {key: found[0] for key, found in known.items() if found is not None}
        call = Call(name, others, named, passed)
        self.calls[index].append(call)
        if self._compare:
            self.given[index] += [(key, tensor) for key, tensor in call.tensors() if id(tensor) not in self.written]
        if self._first is None:
            self._first, self.first = index, hidden
            if self._disturb:
                changed = hidden.flip(1) * -1.5
                return ((changed, *others), named) if name is None else (others, {**named, name: changed})
        elif self._check and (self._last is None or not torch.equal(hidden, self._last)):
            raise self._blocks.refused(
                index, "an input other than the previous block's output", "blocks that follow each other"
            )
        self._input = hidden if self._check else None
        return None

    def after(self, index: int, block: nn.Module, result: Any) -> None:
        """Note what a block returns, and what it has left in its arguments; call it again and compare."""
        if self._again:
            return
        self._returned |= {id(value): (place, value) for place, value in others_of(index, result)}
        if self._compare:
            bare = isinstance(result, Tensor)
            if bare or (isinstance(result, tuple) and all(value is None for value in result[1:])):
                self._beside[index] = None if bare else len(result) - 1
            before = {id(tensor) for _, tensor in self.given[index]}
            now = (tensor for _, tensor in self.calls[index][-1].tensors())
            self.written |= {id(tensor): tensor for tensor in now if id(tensor) not in before}
        if self._input is None:
            return
        self._last = hidden_of(result)
        self._blocks.check_finite(index, self._last)
        self._again = True
        again = hidden_of(self.calls[index][-1].repeat(block, self._input))
        self._again = False
        if not torch.equal(again, self._last):
            worst = float((again.float() - self._last.float()).abs().max())
            raise self._blocks.refused(
                index, f"a replay that differs by up to {worst:.2g}", "the dense forward's output"
            )

    def beside_hidden(self) -> dict[int, int | None] | None:
        """Return how many empty places each block returned beside its hidden state; None: a hidden state alone.

        With `compare`; None for all where a block handed on anything else, by what it returned or in an argument.
        """
        called = {index for index, calls in enumerate(self.calls) if calls}
        return self._beside if not self.written and self._beside.keys() == called else None
