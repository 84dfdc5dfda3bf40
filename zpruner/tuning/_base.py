"""What every tuning is: the last change of a block's kept weights, under pruned propagation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.parts.registry import Part

Weights = Mapping[str, Tensor]
"""Layer -> weight, float32 (out, in)."""


@dataclass(frozen=True)
class KeptWeights:
    """What may change of one layer.

    Attributes:
        weight: as pruned, float (out, in), zeros in place.
        keep: bool (out, in); what is False stays zero.
        squares: per input channel, the sum over tokens of the squared input, float (in,).
    """

    weight: Tensor
    keep: Tensor
    squares: Tensor


class Goal:
    """What a block is to put out for a batch, and how far from it an output is.

    The squared distance counts every token's share of its mean square, as the next norm divides it.

    Args:
        target: (windows, seqlen, width).
        given: the block's input, of the same shape.
    """

    def __init__(self, target: Tensor, given: Tensor) -> None:
        self._target = target
        size = target.float().square().mean(dim=-1, keepdim=True)
        self._weight = size.clamp_min_(torch.finfo(torch.float32).tiny).reciprocal_()
        self.whole = float(self.distance(given))
        """The distance of the input: what the block is to add."""

    def distance(self, found: Tensor) -> Tensor:
        """Return the distance of an output, (windows, seqlen, width), as a float32 tensor of one number."""
        return ((found.float() - self._target).square() * self._weight).sum()


class Tuning(Part, ABC):
    """Tunes the kept weights of one decoder block after all of its layers are pruned; the fields are its settings."""

    @property
    @abstractmethod
    def follows_dense(self) -> bool:
        """Whether its targets need the hidden states of the unpruned model."""

    @abstractmethod
    def batch_size(self, windows: int, most: int) -> int:
        """Return how many calibration windows make one of the batches that `tune` is given, at most `most`.

        Args:
            windows: how many there are.
            most: how many run through the model at a time.

        Raises:
            InvalidSettingError: there are too few windows.
        """

    @abstractmethod
    def target(self, replayed: Tensor, dense: Tensor | None) -> Tensor:
        """Return what the block is to put out for a batch, (windows, seqlen, width).

        Args:
            replayed: what the unpruned block puts out where the blocks before it are pruned.
            dense: what it puts out in the unpruned model; None unless `follows_dense`.
        """

    @abstractmethod
    def tune(
        self,
        layers: Mapping[str, KeptWeights],
        run: Callable[[Weights, int], Tensor],
        goals: Sequence[Goal],
    ) -> dict[str, Tensor]:
        """Return the new weights of every layer, (out, in), in the dtype of those given, zeros in place.

        Args:
            layers: of the block, by name.
            run: given weights of these layers and the index of a batch, returns what the block puts out,
                (windows, seqlen, width), and lets gradients through.
            goals: what it is to put out, batch by batch.
        """
