"""Run a model that lies in memory as a whole, or one whose weights come from its checkpoint block by block.

Both run the same forward passes on the same batches, so that the numbers are the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from zpruner.errors import ModelStructureError
from zpruner.execution.lockstep import Lockstep
from zpruner.execution.skeleton import Skeleton
from zpruner.execution.spill import Spill
from zpruner.model.layers import PrunableLayer, find_blocks
from zpruner.model.weights import get_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
_SMALL = 1 << 24
"""Bytes: a module outside the blocks whose weights take no more stays (norms, learned positions)."""


class Runner(ABC):
    """Runs forward passes of a model.

    Attributes:
        model: its weights may be on the meta device between two calls.
        device: where it computes.
    """

    model: PreTrainedModel
    device: torch.device
    streamed: bool

    @abstractmethod
    def run(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Yield what calls of the model return, in order, computed without gradients."""

    @abstractmethod
    def change(self, n_blocks: int, prepare: Callable[[int], None]) -> None:
        """Change the weights of every block in place: `prepare` is given a block's index when they are in memory."""

    @abstractmethod
    def holding(self, block: int) -> Any:
        """Return a context manager during which the weights of a decoder block are in memory."""

    def weights(self, layers: Iterable[PrunableLayer]) -> Iterator[tuple[PrunableLayer, Tensor]]:
        """Yield every layer with its weight (out, in); layers of a block should follow each other."""
        for block, members in groupby(layers, key=lambda layer: layer.block):
            with self.holding(block):
                for layer in members:
                    yield layer, get_weight(self.model, layer)

    @abstractmethod
    def release(self) -> None:
        """Let go of weights that are in memory for a time only; they are read again when they are needed."""

    @abstractmethod
    def keep_small(self, index: int, hidden: Tensor) -> None:
        """Let go of a hidden state's memory until `bring_back`, where memory is short."""

    @abstractmethod
    def bring_back(self, index: int, hidden: Tensor) -> None:
        """Give a hidden state its values again."""


class WholeRunner(Runner):
    """A model in memory: calls run one after another."""

    streamed = False

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.device = next(model.parameters()).device

    def run(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Run each call when its result is asked for."""
        for call in calls:
            with torch.no_grad():
                result = call()
            yield result

    def change(self, n_blocks: int, prepare: Callable[[int], None]) -> None:
        """Change all blocks now."""
        with torch.no_grad():
            for block in range(n_blocks):
                prepare(block)

    @contextmanager
    def holding(self, block: int) -> Iterator[None]:
        """Do nothing: all weights are in memory."""
        yield

    def release(self) -> None:
        """Do nothing: all weights stay."""

    def keep_small(self, index: int, hidden: Tensor) -> None:
        """Do nothing."""

    def bring_back(self, index: int, hidden: Tensor) -> None:
        """Do nothing."""


class StreamedRunner(Runner):
    """A model of which one unit of weights is in memory at a time: a decoder block, the embedding, or the head.

    The unit that is needed next is read meanwhile, where there is room for it: then there are two. Small modules
    outside the blocks stay in memory.

    Args:
        skeleton: the model without weights.
        blocks: path of the decoder blocks, where structure does not tell.
        spill: where hidden states go that memory has no room for.
        small: bytes up to which a module outside the blocks stays.
        room: bytes of a unit that may be read before it is needed; 0: none is.
    """

    streamed = True

    def __init__(
        self,
        skeleton: Skeleton,
        blocks: str | None,
        spill: Spill,
        small: int = _SMALL,
        room: int = 0,
    ) -> None:
        self._room = room
        self.skeleton, self.model, self.device = skeleton, skeleton.model, skeleton.device
        self._spill = spill
        self._prepare: Callable[[int], None] | None = None
        self._path = find_blocks(self.model, blocks)
        self.units = self._find_units(small)
        """Unit -> stored names: modules that come and go."""
        moving = {name for names in self.units.values() for name in names}
        skeleton.put(name for name in skeleton.stored if name not in moving)
        self._following = self._order()
        """Unit -> the one that is expected to be needed after it."""
        self._blocks = {unit for unit in self.units if unit.rpartition(".")[0] == self._path}
        self._passing = False
        self._there: str | None = None
        self._held: str | None = None
        self._lockstep = Lockstep(self._bring, lambda unit: unit == self._there)
        for unit in self.units:
            self._watch(unit, self.model.get_submodule(unit))

    def run(self, calls: Sequence[Callable[[], T]]) -> Iterator[T]:
        """Run all calls side by side, each unit read once where all calls take the same way through the model."""
        self._passing = True
        try:
            results = self._lockstep.run(calls)
        finally:
            self._passing = False
            self.skeleton.announce(())
        yield from results

    @property
    def current(self) -> int | None:
        """The index of the call that is running; None outside `run`."""
        return self._lockstep.current

    def change(self, n_blocks: int, prepare: Callable[[int], None]) -> None:
        """Change every block each time that its weights are read."""
        self.release()
        self._prepare = prepare

    @contextmanager
    def holding(self, block: int) -> Iterator[None]:
        """Read a block's weights; they are let go when another unit is needed."""
        unit = f"{self._path}.{block}"
        if self._there != unit:
            self._bring(unit)
        before, self._held = self._held, unit
        try:
            yield
        finally:
            self._held = before

    def keep_small(self, index: int, hidden: Tensor) -> None:
        """Write a hidden state to disk where memory has no room for it."""
        self._spill.store(index, hidden)

    def bring_back(self, index: int, hidden: Tensor) -> None:
        """Read it again."""
        self._spill.restore(index, hidden)

    def release(self) -> None:
        """Let go of the unit that is in memory, and of what was read of the next one; small modules stay."""
        self.skeleton.announce(())
        self._let_go()

    def _let_go(self) -> None:
        if self._there is not None:
            self.skeleton.take_out(self.units[self._there])
            self._there = None

    def _bring(self, unit: str) -> None:
        assert self._held in (None, unit), f"{unit} needed while {self._held} is held"
        self._let_go()
        self.skeleton.put(self.units[unit])
        self._there = unit
        self._announce(unit)
        prefix, _, index = unit.rpartition(".")
        if prefix == self._path and self._prepare is not None:
            with torch.no_grad():
                self._prepare(int(index))

    def _announce(self, unit: str) -> None:
        """Begin to read the unit that comes after `unit`; where blocks are held one by one, the next block."""
        following = self._following.get(unit, unit)
        wanted = following != unit and (self._passing or following in self._blocks)
        names = self.units[following] if wanted else []
        self.skeleton.announce(names if self.skeleton.sizes(names) <= self._room else [])

    def _order(self) -> dict[str, str]:
        """Return what follows each unit where the model calls its modules in the order in which it lists them."""
        place = {name: index for index, name in enumerate(self.skeleton.stored)}
        listed = sorted(self.units, key=lambda unit: place[self.units[unit][0]])
        return dict(pairwise(listed))

    def _find_units(self, small: int) -> dict[str, list[str]]:
        blocks = [
            f"{self._path}.{index}" for index in range(len(list(self.model.get_submodule(self._path).children())))
        ]
        units: dict[str, list[str]] = {block: [] for block in blocks}
        others: dict[str, list[str]] = {}
        for name in self.skeleton.stored:
            if name.startswith(f"{self._path}."):
                index = name.removeprefix(f"{self._path}.").split(".")[0]
                units[f"{self._path}.{index}"].append(name)
            else:
                others.setdefault(name.rpartition(".")[0], []).append(name)
        for owner, names in others.items():
            # What contains other modules is in use while they come and go.
            leaf = owner and not any(self.model.get_submodule(owner).children())
            if leaf and self.skeleton.sizes(names) > small:
                units[owner] = names
        moving = {name for names in units.values() for name in names}
        staying = {tied for name in self.skeleton.stored if name not in moving for tied in self.skeleton.tied[name]}
        units = {unit: [name for name in names if name not in staying] for unit, names in units.items()}
        return {unit: names for unit, names in units.items() if names}

    def _watch(self, unit: str, module: nn.Module) -> None:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            hidden = next(iter(given), None)
            if any(value.is_meta for value in given):
                raise ModelStructureError(
                    unit,
                    "an input without values: the model's code follows the device of a weight that is not there yet",
                    "a model that can be read block by block",
                    "Set machine.streaming to never in params.yaml.",
                )

            def store(index: int) -> None:
                if hidden is not None and hidden.is_floating_point():
                    self._spill.store(index, hidden)

            def restore(index: int) -> None:
                if hidden is not None and hidden.is_floating_point():
                    self._spill.restore(index, hidden)

            self._lockstep.need(unit, store, restore)

        module.register_forward_pre_hook(before, with_kwargs=True)
