"""A composition: any score or solver with any comparison group, mask refinement, weight update and quantisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zpruner.allocations import Allocation
from zpruner.corrections import Correction
from zpruner.errors import InvalidSettingError, MissingStatisticError
from zpruner.masks import MaskRefinement, select
from zpruner.methods import MaskSolver, Method, PruningMethod
from zpruner.parts.registry import Part
from zpruner.patterns import Pattern, StructuredPattern, StructureKind
from zpruner.quantization import QuantizedLayer, Rounding
from zpruner.rankings import Ranking
from zpruner.tuning import Tuning
from zpruner.types import (
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
    """

    mask: Mask
    weight: Tensor
    quantized: QuantizedLayer | None = None


@dataclass(frozen=True)
class Composition:
    """What a label in params.yaml under `methods` stands for.

    `takes_solution` says that the update is what the solver itself does on its mask: its weights are taken.
    `by_submodule` has sequential pruning measure each sub-module of a block with those before it pruned; `tuning`
    follows when all of the block is. `rounding` comes last and puts what stays on a grid. `structures` has what ranks
    structures of a kind, where that is not the sum of `method`'s scores.
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
        return frozenset().union(*(part.required() for part in self._parts()))

    @property
    def needs_after_score(self) -> frozenset[Stat]:
        """Every statistic that a part reads once scores are known: all parts but a score."""
        parts = [part for part in self._parts() if self.solves or part is not self.method]
        return frozenset().union(*(part.required() for part in parts))

    @property
    def workspace(self) -> int:
        """The most square float32 matrices of a layer's input width that a part holds at once."""
        return max(part.workspace for part in self._parts())

    def _parts(self) -> list[Part]:
        parts = [self.method, *self.structures.values(), self.refinement, self.update, self.correction, self.rounding]
        return [part for part in parts if part is not None]

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
        self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern, scores: ScoreMatrix | None = None
    ) -> Mask:
        """Return the keep mask of one layer: a solver's, or exact selection; then the refinement where there is one.

        Args:
            weight: float (out, in).
            stats: of the layer's input.
            pattern: what is removed.
            scores: where they are known already.
        """
        return self._choose(weight, stats, pattern, scores)[0]

    def prune(
        self, dense: Tensor, stats: LayerStats, pattern: SparsityPattern, scores: ScoreMatrix | None = None
    ) -> Pruned:
        """Return mask and pruned weight of one layer, in the dtype of the dense one, every part in turn.

        Args:
            dense: float (out, in).
            stats: of the layer's input.
            pattern: what is removed.
            scores: where they are known already, of a weight that is not corrected.
        """
        weight = self.correct(dense, stats)
        if (joint := self._solve_on_grid(weight, stats, pattern)) is not None:
            return _dequantized(joint, dense.dtype)
        mask, solved = self._choose(weight, stats, pattern, scores)
        if solved is not None and self.takes_solution:
            return self.finish(solved, mask, stats, dense.dtype)
        return self.finish(self._updated(weight, mask, stats), mask, stats, dense.dtype)

    def prune_by(self, dense: Tensor, mask: Mask, stats: LayerStats) -> Pruned:
        """Return a layer pruned by a mask that is known, its weight (out, in) in the dtype of the dense one."""
        return self.finish(self._updated(self.correct(dense, stats), mask, stats), mask, stats, dense.dtype)

    def apply(self, weight: Tensor, mask: Mask, stats: LayerStats | None) -> Tensor:
        """Return the pruned weight, zeros in place: updated and quantised as the composition says, or as it was.

        Shape and dtype stay. Under `sparsegpt` with a rounding that its sweep can do, `prune` does both at once.
        """
        return self.finish(self._updated(weight, mask, stats), mask, stats, weight.dtype).weight

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
        own = self.method.same_as_update()
        if own is None or self.refinement is not None or not self.rounding.joins(own[1]):
            return None
        check_weight(weight, stats)
        return self.method.solve_on_grid(weight.float(), stats, pattern, self.rounding.grid)

    def _choose(
        self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern, scores: ScoreMatrix | None = None
    ) -> tuple[Mask, Tensor | None]:
        """Return the mask, and the weights that a solver found on it."""
        solved = None
        if isinstance(self.method, MaskSolver):
            check_weight(weight, stats)
            found = self.method.solve(weight.float(), stats, pattern)
            mask, solved = Mask(stats.layer, found.keep), found.weight
        else:
            mask = derive_mask(self, scores or self.score(weight, stats), pattern)
        if self.refinement is None:
            return mask, solved
        return Mask(stats.layer, self.refinement.refine(weight.float(), mask.keep, stats, pattern)), None


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
    return Mask(scores.layer, select(scores.values, pattern, composition.group, scores.layer))


def statistics_of(compositions: Iterable[Composition], propagation: str = "dense") -> frozenset[Stat]:
    """Return what a calibration of the unpruned model has to collect for all these compositions.

    Under pruned propagation the statistics that layers are pruned with come from the half-pruned model; of the
    unpruned one gradients and what allocations look at are needed.
    """
    needed: set[Stat] = set()
    for composition in compositions:
        found = composition.needs - RELATIVE
        needed |= found if propagation == "dense" else found & {Stat.GRAD_SQ}
        if composition.allocation is not None:
            needed |= composition.allocation.required()
    return frozenset(needed)


def _whole_rows(keep: Tensor) -> bool:
    """Return whether every row of a mask, bool (out, in), is kept whole or goes whole."""
    return bool((keep == keep[:, :1]).all())
