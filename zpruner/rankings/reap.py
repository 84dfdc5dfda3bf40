"""REAP: what an expert adds to the tokens routed to it (Cerebras 2025, arXiv 2510.13999)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from zpruner.patterns import StructureKind
from zpruner.rankings._base import Ranking, Structures


class Reap(Ranking):
    """The mean over an expert's tokens of `||gate f(x)||`, the norm of what it adds to the hidden state.

    Unlike a count of tokens it does not favour experts that meet many and change little.
    """

    kinds: ClassVar[frozenset[StructureKind]] = frozenset({StructureKind.EXPERTS})

    def importance(self, structures: Structures) -> Tensor:
        """Return what each expert adds, as the unpruned model routes: float64 (count,)."""
        assert structures.contributions is not None
        return structures.contributions
