"""Cosine: blocks that turn the hidden state least (ShortGPT, arXiv 2403.03853), measured again after each."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zpruner.patterns import StructureKind
from zpruner.rankings._base import Ranking, Structures


class Cosine(Ranking):
    """A block is worth `1 - cos(input, output)`, averaged over tokens.

    The least one goes, and what is left is measured again: blocks that look alike cannot all go.
    """

    kinds: ClassVar[frozenset[StructureKind]] = frozenset({StructureKind.BLOCKS})

    def importance(self, structures: Structures) -> Tensor:
        """Return how far each block turns the hidden state, all of them in place: float64 (count,)."""
        assert structures.distances is not None
        return structures.distances(torch.ones(structures.count, dtype=torch.bool))

    def choose(self, structures: Structures, kept: int) -> Tensor:
        """Return which blocks stay, bool (count,): `kept` of them."""
        assert structures.distances is not None
        keep = torch.ones(structures.count, dtype=torch.bool)
        while int(keep.sum()) > kept:
            found = structures.distances(keep)
            if structures.fixed is not None:
                found = found.masked_fill(structures.fixed, torch.inf)
            keep[int(found.argmin())] = False
        return keep
