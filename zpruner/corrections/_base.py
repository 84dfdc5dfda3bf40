"""What every correction is: the weight that scores, masks and updates start from, under pruned propagation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from zpruner.parts.registry import Part
from zpruner.types import LayerStats


class Correction(Part, ABC):
    """Makes up for what earlier pruned blocks changed in a layer's input; the fields are its settings."""

    @abstractmethod
    def correct(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the corrected weight: float32 (out, in).

        Args:
            weight: float32 (out, in), dense.
            stats: of the layer's input in the half-pruned model, with those that set it against the unpruned one.

        Raises:
            MissingStatisticError: a statistic that it reads was not collected.
            SolverError: the damped Gram matrix is singular; names the layer.
        """
