"""A composition: any score or solver with any comparison group, mask refinement, weight update and quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from zpruner.allocations import Allocation
from zpruner.corrections import Correction
from zpruner.errors import InvalidSettingError, MissingStatisticError
from zpruner.linalg import centred
from zpruner.masks import MaskRefinement, arrange_columns, select
from zpruner.methods import MaskSolver, Method, PruningMethod
from zpruner.model import PrunableLayer
from zpruner.parts.registry import Part
from zpruner.patterns import Pattern, Permutation, StructuredPattern, StructureKind
from zpruner.quantization import QuantizedLayer, Rounding
from zpruner.rankings import Ranking
from zpruner.tuning import Tuning
from zpruner.types import (
    DERIVATIVES,
    RELATIVE,
    ComparisonGroup,
    LayerStats,
    Mask,
    ScoreMatrix,
    SparsityPattern,
    Stat,
    check_weight,
)
from zpruner.updates import WeightUpdate

RANKED_BY = {
    StructureKind.NEURONS: "obs",
    StructureKind.GROUPS: "obs",
    StructureKind.BLOCKS: "cosine",
    StructureKind.EXPERTS: "reap",
}
"""What to name where nothing ranks structures of a kind."""


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


@dataclass(frozen=True)
class Composition:
    """What a label in params.yaml under `methods` stands for.

    `takes_solution` says that the update is what the solver itself does on its mask: its weights are taken.
    `by_submodule` has sequential pruning measure each sub-module of a block with those before it pruned; `tuning`
    follows when all of the block is. `rounding` comes last and puts what stays on a grid. `structures` has what ranks
    structures of a kind, where that is not the sum of `method`'s scores. With `correct_bias` the mean of what a layer
    loses goes into its bias, where it has one; solvers then see inputs less their mean. `permute` has what is put into
    an order in which N:M keeps more: of the model before anything else, or of each layer's inputs by themselves.
    """

    method: Method
    group: ComparisonGroup
    refinement: MaskRefinement | None = None
    update: WeightUpdate | None = None
    allocation: Allocation | None = None
    correction: Correction | None = None
    takes_solution: bool = False
    by_submodule: bool = False
    tuning: Tuning | None = None
    rounding: Rounding | None = None
    structures: Mapping[StructureKind, PruningMethod | Ranking] = field(default_factory=dict)
    correct_bias: bool = False
    permute: frozenset[Permutation] = frozenset()

    @property
    def solves(self) -> bool:
        """Whether masks come from a solver, one pattern at a time, and not from scores."""
        return isinstance(self.method, MaskSolver)

    def ranking(self, kind: StructureKind) -> PruningMethod | Ranking:
        """Return what ranks structures of a kind: a score of single weights is summed over each of them.

        Raises:
            InvalidSettingError: nothing does: the method is a solver, which chooses single weights.
        """
        found = self.structures.get(kind, self.method)
        if isinstance(found, PruningMethod | Ranking):
            return found
        raise InvalidSettingError(
            "structures",
            f"nothing that ranks {kind}: {type(found).__name__} chooses single weights",
            "a score, or a ranking of structures",
            f"Add structures: {{{kind}: {RANKED_BY[kind]}}} to the composition.",
        )

    def sums(self, kind: StructureKind, pattern: StructuredPattern) -> bool:
        """Return whether structures of a kind that a pattern removes are ranked by scores of their weights."""
        return kind in pattern and isinstance(self.ranking(kind), PruningMethod)

    def moved(self, pattern: Pattern) -> frozenset[Permutation]:
        """Return what of a model is put into another order: nothing but where a pattern compares neighbours."""
        return self._permuted(pattern) - {Permutation.CHANNELS}

    def gathers(self, pattern: Pattern) -> bool:
        """Return whether masks are N:M in an order of each layer's inputs that the model does not have."""
        return Permutation.CHANNELS in self._permuted(pattern)

    def _permuted(self, pattern: Pattern) -> frozenset[Permutation]:
        neighbours = isinstance(pattern, SparsityPattern) and pattern.is_nm
        return self.permute if neighbours else frozenset()

    def check(self, pattern: Pattern) -> None:
        """Raise InvalidSettingError or InvalidPatternError unless the parts make sense with a pattern."""
        if not isinstance(pattern, StructuredPattern):
            if self.allocation is not None:
                self.allocation.check(pattern)
            return
        for kind in pattern:
            self.ranking(kind)
        for key, part in (("allocate", self.allocation), ("refine", self.refinement)):
            if part is not None:
                raise InvalidSettingError(
                    key,
                    f"{type(part).__name__} for the pattern {pattern}",
                    "none: structures go whole, as many in every block",
                    f"Leave {key} out, or list another method for this pattern.",
                )

    @property
    def needs(self) -> frozenset[Stat]:
        """Every statistic that a part reads of the layer that it prunes."""
        return self._required(self._parts())

    @property
    def needs_after_score(self) -> frozenset[Stat]:
        """Every statistic that a part reads once scores are known: all parts but a score."""
        return self._required(part for part in self._parts() if self.solves or part is not self.method)

    def _required(self, parts: Iterable[Part]) -> frozenset[Stat]:
        found: frozenset[Stat] = frozenset().union(*(part.required() for part in parts))
        means = {Stat.SUM, Stat.SUM_HALF} if Stat.GRAM_HALF in found else {Stat.SUM}
        return found | means if self.correct_bias else found

    @property
    def needs_of_unpruned(self) -> frozenset[Stat]:
        """Every statistic of the unpruned model that is read under pruned propagation, too."""
        allocated = frozenset() if self.allocation is None else self.allocation.required()
        ordered = {Stat.SQ_SUM} if self.permute else set()
        return (self.needs & DERIVATIVES) | allocated | ordered

    @property
    def workspace(self) -> int:
        """The most square float32 matrices of a layer's input width that a part holds at once."""
        return max(part.workspace for part in self._parts())

    def _parts(self) -> list[Part]:
        solving = (self.method, *self.structures.values(), self.refinement, self.update, self.correction, self.rounding)
        return [part for part in (*solving, self.allocation) if part is not None]

    def ahead(self, layers: Iterable[PrunableLayer], pattern: Pattern) -> bool:
        """Return whether more than masks is kept of these layers: integers, biases, or the weights of a solution."""
        if self.rounding is not None or (self.correct_bias and any(layer.bias for layer in layers)):
            return True
        return self.takes_solution and self.refinement is None and not isinstance(pattern, StructuredPattern)

    def seen(self, stats: LayerStats, biased: bool) -> LayerStats:
        """Return the statistics that solvers read of a layer: of the input less its mean where a bias carries that."""
        return centred(stats) if self.correct_bias and biased else stats

    def check_propagation(self, propagation: str) -> None:
        """Raise InvalidSettingError where a part needs blocks to be pruned one after another and they are not."""
        if self.tuning is not None and propagation != "pruned":
            raise InvalidSettingError(
                "tune",
                f"{propagation} propagation",
                "pruned propagation: blocks are tuned one after another",
                "Set calibration.propagation to pruned, or leave tune out.",
            )

    def correct(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the weight that scores, masks and updates start from, (out, in).

        That is the dense one, unless the composition corrects for what earlier pruned blocks changed in the layer's
        input. Where the statistics are those of the unpruned model there is nothing to correct.
        """
        if self.correction is None or not any(stats.find(stat) is not None for stat in RELATIVE):
            return weight
        return self.correction.correct(weight.float(), stats)

    def score(self, weight: Tensor, stats: LayerStats) -> ScoreMatrix:
        """Return the importance of every weight, checked; only where the composition does not solve.

        Args:
            weight: float (out, in).
            stats: of the layer's input.

        Raises:
            NonFiniteError: NaN or infinity in the weights or scores; names the layer.
            ShapeMismatchError: statistics of another width than the weight's.
        """
        if not isinstance(self.method, PruningMethod):
            raise TypeError(f"layer {stats.layer}: a solver has no scores")
        check_weight(weight, stats)
        return ScoreMatrix(stats.layer, self.method.score(weight.float(), stats))

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
        return self._choose(weight, stats, pattern, scores, self.seen(stats, biased))[0]

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
        weight, seen = self.correct(dense, stats), self.seen(stats, biased)
        if (joint := self._solve_on_grid(weight, seen, pattern)) is not None:
            return self._shifted(_dequantized(joint, dense.dtype), weight, stats, biased)
        mask, solved = self._choose(weight, stats, pattern, scores, seen)
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
        weight, seen = self.correct(dense, stats), self.seen(stats, biased)
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

    def _choose(
        self,
        weight: Tensor,
        stats: LayerStats,
        pattern: SparsityPattern,
        scores: ScoreMatrix | None,
        seen: LayerStats,
    ) -> tuple[Mask, Tensor | None]:
        """Return the mask, and the weights that a solver found on it; `seen` is what a solver reads.

        Where inputs are gathered, all of it happens in an order in which more can stay, found from the scores, for a
        solver from `W^2 a`.
        """
        if not self.gathers(pattern):
            return self._choose_as_it_lies(weight, stats, pattern, scores, seen)
        if self.solves:
            values = weight.float().square() * stats.squared_norm()
        else:
            scores = scores or self.score(weight, stats)
            values = scores.values
        order = arrange_columns(values, pattern)
        if scores is not None:
            scores = ScoreMatrix(scores.layer, values[:, order])
        mask, solved = self._choose_as_it_lies(
            weight[:, order], stats.reordered(order), pattern, scores, seen.reordered(order)
        )
        back = order.argsort()
        mask = replace(mask, keep=mask.keep[:, back], order=order)
        return mask, None if solved is None else solved[:, back]

    def _choose_as_it_lies(
        self,
        weight: Tensor,
        stats: LayerStats,
        pattern: SparsityPattern,
        scores: ScoreMatrix | None,
        seen: LayerStats,
    ) -> tuple[Mask, Tensor | None]:
        solved = None
        if isinstance(self.method, MaskSolver):
            check_weight(weight, stats)
            found = self.method.solve(weight.float(), seen, pattern)
            mask, solved = Mask(stats.layer, found.keep, found.shrinkage), found.weight
        else:
            values = (scores or self.score(weight, stats)).values
            mask = Mask(stats.layer, select(values, pattern, self.group, stats.layer))
        if self.refinement is None:
            return mask, solved
        return replace(mask, keep=self.refinement.refine(weight.float(), mask.keep, seen, pattern)), None


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
