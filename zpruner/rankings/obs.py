"""Structured OBS: what a layer loses once all else has made up for it, removed in rounds (arXiv 2302.04089)."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from zpruner.linalg import Elimination, damped_hessian
from zpruner.patterns import StructureKind
from zpruner.rankings._base import Ranking, Structures, keep_highest
from zpruner.types import Stat


class Obs(Ranking):
    """A structure costs `tr(W_g ([H^-1]_gg)^-1 W_g^T)`, W_g being the columns that read it.

    It is removed in rounds, after each of which the others have made up for what went, and costs are taken anew. The
    error of one layer alone misleads, since its inputs change with the blocks before: only a strongly raised diagonal
    (`shrinkage`) ranks well.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.GRAM})
    kinds: ClassVar[frozenset[StructureKind]] = frozenset({StructureKind.NEURONS, StructureKind.GROUPS})
    workspace: ClassVar[int] = 3

    damping: float = Field(default=0.01, ge=0.0)
    """Share of the mean of the Hessian's diagonal added to it."""
    shrinkage: float = Field(default=1.0, ge=0.0)
    """Share of each entry of the Hessian's diagonal added to itself."""
    rounds: int = Field(default=8, ge=1)
    """Rounds in which structures go, the same number in each."""

    def importance(self, structures: Structures) -> Tensor:
        """Return the cost of removing each structure alone: float64 (count,).

        Raises:
            MissingStatisticError: a layer's statistics have no gram.
            SolverError: a Hessian is singular; names the layer and the damping to try.
        """
        found = [
            reads.costs(columns.index) for columns, reads in zip(structures.reads, self._begin(structures), strict=True)
        ]
        return torch.stack(found).sum(0)

    def choose(self, structures: Structures, kept: int) -> Tensor:
        """Return which structures stay, bool (count,): `kept` of them."""
        readers = self._begin(structures)
        alive = torch.arange(structures.count, device=structures.reads[0].weight.device)
        gone = structures.count - kept
        for number in range(self.rounds):
            now = gone * (number + 1) // self.rounds - gone * number // self.rounds
            if not now:
                continue
            pairs = list(zip(structures.reads, readers, strict=True))
            cost = torch.stack([reader.costs(columns.index[alive]) for columns, reader in pairs]).sum(0)
            fixed = None if structures.fixed is None else structures.fixed.to(alive.device)[alive]
            stay = keep_highest(cost, len(alive) - now, fixed)
            for columns, reader in pairs:
                reader.remove(columns.index[alive[~stay]].reshape(-1))
            alive = alive[stay]
        keep = torch.zeros(structures.count, dtype=torch.bool, device=alive.device)
        keep[alive] = True
        return keep

    def _begin(self, structures: Structures) -> list[Elimination]:
        return [
            Elimination(
                columns.weight,
                damped_hessian(
                    columns.stats.require(Stat.GRAM), self.damping, columns.stats.layer, shrinkage=self.shrinkage
                ),
            )
            for columns in structures.reads
        ]
