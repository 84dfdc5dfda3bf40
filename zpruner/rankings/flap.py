"""FLAP: how much what a structure carries fluctuates (An et al. 2023, arXiv 2312.11983)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from zpruner.patterns import StructureKind
from zpruner.rankings._base import Ranking, Structures
from zpruner.types import Stat


class Flap(Ranking):
    """The variance of each input that carries a structure times the squared norm of the weights that read it.

    What an input is on average a bias can replace: `sum_j Var(x_j) ||W_:j||^2` is what is lost without it. The
    published method spreads the sparsity over layers by the standardised score; here every block loses as many.
    """

    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.SQ_SUM, Stat.SUM})
    kinds: ClassVar[frozenset[StructureKind]] = frozenset({StructureKind.NEURONS, StructureKind.GROUPS})

    def importance(self, structures: Structures) -> Tensor:
        """Return the fluctuation of every structure: float64 (count,).

        Raises:
            MissingStatisticError: a layer's statistics have no sum or no sq_sum.
        """
        found = []
        for columns in structures.reads:
            variance = columns.stats.variance()
            found.append(columns.sums(variance * columns.weight.double().square().sum(0)))
        return torch.stack(found).sum(0)
