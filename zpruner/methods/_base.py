"""What every pruning method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat


class PruningMethod(BaseModel, ABC):
    """Scores the weights of one linear layer; the fields of a subclass are its hyper-parameters.

    One subclass per file of this room; the file's name is the method's name in params.yaml.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    needs: ClassVar[frozenset[Stat]]
    """The statistics that `score` reads."""
    default_group: ClassVar[ComparisonGroup]
    """The comparison group of the published method."""
    workspace: ClassVar[int] = 0
    """Square float32 matrices of the input's width that `score` holds at once, beside the statistics."""
    depends_on_pattern: ClassVar[bool] = False
    """True for solvers that choose the mask themselves: they are run once per pattern and return 1 and 0."""

    def required(self) -> frozenset[Stat]:
        """Return the statistics that `score` reads under these hyper-parameters."""
        return self.needs

    @abstractmethod
    def score(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern | None = None) -> Tensor:
        """Return the importance of every weight.

        Args:
            weight: float32 (out, in).
            stats: calibration statistics of the layer's input, on the weight's device.
            pattern: what will be removed; given only to methods with `depends_on_pattern`.

        Returns:
            float32 (out, in), finite, larger = keep.
        """
