"""What rankings see of structures that are removed whole, and what every ranking is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.patterns import StructureKind
from zpruner.types import LayerStats


@dataclass(frozen=True)
class Columns:
    """The inputs of one layer that carry structures, such as those of a down projection.

    Attributes:
        places: int64 (count, width): the inputs that carry structure i.
        load: gives the layer's weight, float32 (out, in), and the statistics of its input.
    """

    places: Tensor
    load: Callable[[], tuple[Tensor, LayerStats]]

    @cached_property
    def _loaded(self) -> tuple[Tensor, LayerStats]:
        return self.load()

    @property
    def weight(self) -> Tensor:
        """The layer's weight, float32 (out, in)."""
        return self._loaded[0]

    @property
    def stats(self) -> LayerStats:
        """Statistics of the layer's input."""
        return self._loaded[1]

    @cached_property
    def index(self) -> Tensor:
        """The places, where the weight lies."""
        return self.places.to(self.weight.device)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum per structure, float64 (count,), of one value per input, (in,)."""
        return values.double()[self.index].sum(1)


@dataclass(frozen=True)
class Structures:
    """Structures of one kind that compete with each other, as a ranking sees them.

    Attributes:
        name: what has them, for messages.
        kind: of the structures.
        count: how many there are.
        reads: what reads them; none for blocks and experts.
        contributions: of experts: the mean over the tokens routed to each of `||gate f(x)||`, float64 (count,).
        fixed: which of them must stay, bool (count,); None: none must.
        distances: of blocks: given which of them stay, bool (count,), returns the mean over tokens of
            `1 - cos(input, output)`, float64 (count,); of one that is gone it is infinite.
    """

    name: str
    kind: StructureKind
    count: int
    reads: tuple[Columns, ...] = ()
    distances: Callable[[Tensor], Tensor] | None = None
    contributions: Tensor | None = None
    fixed: Tensor | None = None


class Ranking(Part, ABC):
    """Ranks the structures of one kind against each other; the fields of a subclass are its hyper-parameters."""

    kinds: ClassVar[frozenset[StructureKind]]
    """What it can rank."""

    @abstractmethod
    def importance(self, structures: Structures) -> Tensor:
        """Return the importance of every structure: float64 (count,), finite, larger = keep."""

    def choose(self, structures: Structures, kept: int) -> Tensor:
        """Return which structures stay, bool (count,): `kept` of them."""
        return keep_highest(self.importance(structures), kept, structures.fixed)


def keep_highest(importance: Tensor, kept: int, fixed: Tensor | None = None) -> Tensor:
    """Return which entries stay, bool (count,): those that must, then the highest, `kept` in all.

    Ties give way from the lower index.
    """
    if fixed is not None:
        importance = importance.masked_fill(fixed.to(importance.device), torch.inf)
    order = torch.sort(importance, stable=True).indices
    keep = torch.ones(len(importance), dtype=torch.bool, device=importance.device)
    keep[order[: len(importance) - kept]] = False
    return keep
