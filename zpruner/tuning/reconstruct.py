"""Local reconstruction by gradients of one block (3BASiL-TM, arXiv 2603.01376; EBFT, arXiv 2402.12419)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from zpruner.errors import InvalidSettingError
from zpruner.tuning._base import Goal, KeptWeights, Tuning, Weights


class Reconstruct(Tuning):
    """Tune a block's kept weights so that it puts out what the unpruned one would.

    The target of a block is `(1 - share) f(x^; dense) + share f(x; dense)`, x^ its input in the pruned model and x that
    in the unpruned one: with `share` it also makes up for what the blocks before it lost. Adam lowers the squared
    distance to it, every token's divided by its mean square as the next norm divides it, plus `anchor` times the
    relative change of each layer's outputs (inputs taken as uncorrelated). The learning rate is a share of the layer's
    own weights and falls as a cosine. Some batches are left out of the training and decide how many epochs are
    kept; none is where none helps, so that the block never comes out worse on them than it began.
    """

    share: float = Field(default=0.5, ge=0.0, le=1.0)
    """How much of the target is the unpruned model's output; the rest is the unpruned block's on the pruned input."""
    anchor: float = Field(default=0.1, ge=0.0)
    """How much a relative change of the layers' outputs counts, beside the block's relative error."""
    rate: float = Field(default=3e-3, gt=0.0, lt=1.0)
    """Of Adam, as a share of the root mean square of a layer's kept weights."""
    epochs: int = Field(default=5, ge=1)
    """Passes over the training windows at most."""
    batch: int = Field(default=1, ge=1)
    """Windows per step at most; calibration runs in these batches, too."""
    held_out: int = Field(default=8, ge=2)
    """Every so many batches one is held out, at least one."""
    seed: int = Field(default=0, ge=0)
    """Of the order of the batches."""

    @property
    def follows_dense(self) -> bool:
        """Whether part of the target is the unpruned model's output."""
        return self.share > 0.0

    def batch_size(self, windows: int, most: int) -> int:
        """Return how many windows make a batch: so many that there are two batches at least."""
        if windows < 2:
            raise InvalidSettingError(
                "tune",
                f"{windows} calibration window",
                "two or more: one is held out",
                "Raise calibration.nsamples, or leave tune out.",
            )
        return min(self.batch, most, windows // 2)

    def target(self, replayed: Tensor, dense: Tensor | None) -> Tensor:
        """Return the mean of both outputs, weighted by `share`."""
        return replayed if dense is None else replayed.lerp(dense.to(replayed.dtype), self.share)

    def tune(
        self,
        layers: Mapping[str, KeptWeights],
        run: Callable[[Weights, int], Tensor],
        goals: Sequence[Goal],
    ) -> dict[str, Tensor]:
        """Return the weights of the epoch that is best on the batches held out; see `Tuning.tune`."""
        held = list(range(self.held_out - 1, len(goals), self.held_out)) or [len(goals) - 1]
        trained = [index for index in range(len(goals)) if index not in held]
        whole = sum(goals[index].whole for index in trained) / len(trained)
        best = {name: kept.weight for name, kept in layers.items()}
        free = {name: kept.weight.float().clone().requires_grad_() for name, kept in layers.items()}
        rates = [{"params": [free[name]], "lr": self.rate * _size(kept)} for name, kept in layers.items()]
        adam = torch.optim.Adam(rates, eps=1e-20, fused=True)
        steps = self.epochs * len(trained)
        cosine = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 0.5 + 0.5 * math.cos(math.pi * step / steps))
        order = torch.Generator().manual_seed(self.seed)
        anchors = {name: _Anchor(kept, self.anchor / len(layers)) for name, kept in layers.items()}

        def lost(weights: Weights) -> float:
            with torch.no_grad():
                return sum(float(goals[index].distance(run(weights, index))) for index in held)

        least = lost({name: kept.weight.float() for name, kept in layers.items()})
        for _ in range(self.epochs):
            for index in torch.randperm(len(trained), generator=order).tolist():
                with torch.enable_grad():
                    loss = goals[trained[index]].distance(run(free, trained[index])) / whole
                adam.zero_grad()
                loss.backward()
                for name, kept in layers.items():
                    if (gradient := free[name].grad) is not None:  # an expert may have met no token
                        anchors[name].add_to(gradient, free[name].detach())
                        gradient.mul_(kept.keep)
                adam.step()
                cosine.step()
            # What is compared is what comes out: in the dtype of the model.
            now = {name: free[name].detach().to(kept.weight.dtype, copy=True) for name, kept in layers.items()}
            found = lost({name: weight.float() for name, weight in now.items()})
            if found < least:
                best, least = now, found
        return best


class _Anchor:
    """The gradient of `share` times the squared change of a layer's outputs, relative to them.

    Inputs are taken as uncorrelated. Written out, it costs two passes over the weights.
    """

    def __init__(self, kept: KeptWeights, share: float) -> None:
        self._weight = kept.weight.float()
        squares = (kept.squares / kept.squares.mean().clamp_min(torch.finfo(torch.float32).tiny)).float()
        whole = float((self._weight.square() @ squares).sum())
        self._slope = squares.mul_(2 * share / max(whole, 1e-30))

    def add_to(self, gradient: Tensor, weight: Tensor) -> None:
        """Add it to the gradient of a weight, (out, in)."""
        gradient.addcmul_(weight - self._weight, self._slope)


def _size(kept: KeptWeights) -> float:
    """Return the root mean square of the kept weights."""
    return float(kept.weight.double().square().sum().div(max(1, int(kept.keep.sum()))).sqrt())
