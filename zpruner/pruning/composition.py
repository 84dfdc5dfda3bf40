"""A composition: any score or solver with any comparison group, mask refinement, weight update and quantisation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from zpruner.corrections import Corrected
from zpruner.errors import MissingStatisticError
from zpruner.masks import arrange_columns, select
from zpruner.methods import MaskSolver
from zpruner.pruning.choosing import choose, score
from zpruner.pruning.composition_parts import CompositionParts
from zpruner.quantization import QuantizedLayer
from zpruner.types import RELATIVE, LayerStats, Mask, ScoreMatrix, SparsityPattern, Stat, check_weight


@dataclass(frozen=True)
class Pruned:
    """One layer after every part of a composition.

    Attributes:
        mask: which weights stay.
        weight: (out, in), in the dense weight's dtype, zeros in place.
        quantized: the integers and scales that `weight` is made from; None where the composition does not quantise.
        shift: what the layer's bias gains, float32 (out,); None where it stays.
    """

    mask: Mask
    weight: Tensor
    quantized: QuantizedLayer | None = None
    shift: Tensor | None = None


@final
@dataclass(frozen=True)
class Composition(CompositionParts):
    """What a label in params.yaml under `methods` stands for: its parts, and what they make of a layer."""

    def correct(self, weight: Tensor, stats: LayerStats) -> Corrected:
        """Return the weight that scores, masks and updates start from, (out, in).

        That is the dense one, unless the composition corrects for what earlier pruned blocks changed in the layer's
        input. Where the statistics are those of the unpruned model there is nothing to correct.
        """
        if self.correction is None or not any(stats.find(stat) is not None for stat in RELATIVE):
            return Corrected(weight)
        return self.correction.correct(weight.float(), stats)

    def score(self, weight: Tensor, stats: LayerStats) -> ScoreMatrix:
        """Return the importance of every weight, checked; only where the composition does not solve.

        Raises:
            NonFiniteError, ShapeMismatchError: as `choosing.score`.
        """
        return score(self, weight, stats)

    def mask(
        self,
        weight: Tensor,
        stats: LayerStats,
        pattern: SparsityPattern,
        scores: ScoreMatrix | None = None,
        *,
        biased: bool = False,
    ) -> Mask:
        """Return the keep mask of one layer: a solver's, or exact selection; then the refinement where there is one.

        Args:
            weight: float (out, in).
            stats: of the layer's input.
            pattern: what is removed.
            scores: where they are known already.
            biased: whether the layer has a bias.
        """
        return choose(self, weight, stats, pattern, scores, self.seen(stats, biased))[0]

    def prune(
        self,
        dense: Tensor,
        stats: LayerStats,
        pattern: SparsityPattern,
        scores: ScoreMatrix | None = None,
        *,
        biased: bool = False,
    ) -> Pruned:
        """Return mask and pruned weight of one layer, in the dtype of the dense one, every part in turn.

        Args:
            dense: float (out, in).
            stats: of the layer's input.
            pattern: what is removed.
            scores: where they are known already, of a weight that is not corrected.
            biased: whether the layer has a bias.
        """
        corrected, seen = self.correct(dense, stats), self.seen(stats, biased)
        weight = corrected.weight
        if (joint := self._solve_on_grid(weight, seen, pattern)) is not None:
            return self._shifted(_dequantized(joint, dense.dtype), weight, stats, biased)
        mask, solved = choose(self, weight, stats, pattern, scores, seen)
        mask = replace(mask, chosen={**mask.chosen, **corrected.chosen})
        if solved is None or not self.takes_solution:
            solved = self._updated(weight, mask, seen)
        return self._shifted(self.finish(solved, mask, seen, dense.dtype), weight, stats, biased)

    def prune_by(self, dense: Tensor, mask: Mask, stats: LayerStats, *, biased: bool = False) -> Pruned:
        """Return a layer pruned by a mask that is known, its weight (out, in) in the dtype of the dense one.

        Args:
            dense: float (out, in).
            mask: of the layer.
            stats: of the layer's input.
            biased: whether the layer has a bias.
        """
        weight, seen = self.correct(dense, stats).weight, self.seen(stats, biased)
        found = self.finish(self._updated(weight, mask, seen), mask, seen, dense.dtype)
        return self._shifted(found, weight, stats, biased)

    def finish_tuned(self, tuned: Tensor, before: Pruned, stats: LayerStats, dtype: torch.dtype) -> Pruned:
        """Return a layer whose weight was tuned after it was pruned: quantised, what that loses in its bias.

        Args:
            tuned: float (out, in).
            before: the layer as it was tuned, its bias shifted or not.
            stats: of the layer's input.
            dtype: of the result.
        """
        biased = before.shift is not None
        found = self.finish(tuned, before.mask, self.seen(stats, biased), dtype)
        if before.shift is None:
            return found
        last = self._shifted(found, tuned, stats, biased).shift
        return replace(found, shift=before.shift if last is None else before.shift + last)

    def apply(self, weight: Tensor, mask: Mask, stats: LayerStats | None) -> Tensor:
        """Return the pruned weight, zeros in place: updated and quantised as the composition says, or as it was.

        Shape and dtype stay. Under `sparsegpt` with a rounding that its sweep can do, `prune` does both at once.
        """
        return self.finish(self._updated(weight, mask, stats), mask, stats, weight.dtype).weight

    def _shifted(self, found: Pruned, target: Tensor, stats: LayerStats, biased: bool) -> Pruned:
        """Return a layer with the mean of what its outputs lost, `(W - W') m`, as the shift of its bias."""
        if not (self.correct_bias and biased):
            return found
        return replace(found, shift=(target.float() - found.weight.float()) @ stats.mean().float())

    def _updated(self, weight: Tensor, mask: Mask, stats: LayerStats | None) -> Tensor:
        if self.update is None:
            return weight
        stats = _given(stats, mask.layer, "weight update")
        if _whole_rows(mask.keep):  # nothing went that a kept row could make up for
            return weight
        return self.update.update(weight.float(), mask.keep, stats)

    def finish(self, weight: Tensor, mask: Mask, stats: LayerStats | None, dtype: torch.dtype) -> Pruned:
        """Return what becomes of a weight when mask, update and tuning are done: zeros in place, then quantised.

        Args:
            weight: float (out, in).
            mask: of the layer.
            stats: of the layer's input, where the composition quantises.
            dtype: of the result.
        """
        # a product would leave -0.0
        weight = weight.masked_fill(~mask.keep, 0)
        if self.rounding is None:
            return Pruned(mask, weight.to(dtype))
        stats = _given(stats, mask.layer, "rounding")
        check_weight(weight, stats)
        return _dequantized(self.rounding.round(weight.float(), mask.keep, stats), dtype)

    def _solve_on_grid(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> QuantizedLayer | None:
        """Return what a solver's sweep gives that rounds as it goes; None where there is none."""
        if self.rounding is None or not self.takes_solution or not isinstance(self.method, MaskSolver):
            return None
        if self.gathers(pattern):  # groups of columns that share a scale lie together in the model
            return None
        own = self.method.same_as_update()
        if own is None or self.refinement is not None or not self.rounding.joins(own[1]):
            return None
        check_weight(weight, stats)
        return self.method.solve_on_grid(weight.float(), stats, pattern, self.rounding.grid)


def _dequantized(found: QuantizedLayer, dtype: torch.dtype) -> Pruned:
    return Pruned(Mask(found.layer, found.keep), found.dequantize(dtype), found)


def _given(stats: LayerStats | None, layer: str, reader: str) -> LayerStats:
    if stats is None:
        raise MissingStatisticError(
            f"layer {layer}", "no statistics", f"those that the {reader} reads", "Pass the layer's statistics."
        )
    return stats


def derive_mask(composition: Composition, scores: ScoreMatrix, pattern: SparsityPattern) -> Mask:
    """Return the mask that scores alone give: by `pattern` and the composition's comparison group."""
    if not composition.gathers(pattern):
        return Mask(scores.layer, select(scores.values, pattern, composition.group, scores.layer))
    order = arrange_columns(scores.values, pattern)
    keep = select(scores.values[:, order], pattern, composition.group, scores.layer)
    return Mask(scores.layer, keep[:, order.argsort()], order=order)


def statistics_of(compositions: Iterable[Composition], propagation: str = "dense") -> frozenset[Stat]:
    """Return what a calibration of the unpruned model has to collect for all these compositions.

    Under pruned propagation the statistics that layers are pruned with come from the half-pruned model; of the
    unpruned one gradients are needed, and what allocations and orders are found from.
    """
    needed: set[Stat] = set()
    for composition in compositions:
        needed |= composition.needs_of_unpruned
        if propagation == "dense":
            needed |= composition.needs - RELATIVE
    return frozenset(needed)


def _whole_rows(keep: Tensor) -> bool:
    """Return whether every row of a mask, bool (out, in), is kept whole or goes whole."""
    return bool((keep == keep[:, :1]).all())
