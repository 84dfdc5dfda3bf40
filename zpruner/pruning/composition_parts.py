"""What a composition consists of, and what follows from that before a weight is seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zpruner.allocations import Allocation
from zpruner.corrections import Correction
from zpruner.errors import InvalidSettingError
from zpruner.linalg import centred
from zpruner.masks import MaskRefinement
from zpruner.methods import MaskSolver, Method, PruningMethod
from zpruner.model import PrunableLayer
from zpruner.parts.registry import Part
from zpruner.patterns import Pattern, Permutation, StructuredPattern, StructureKind
from zpruner.quantization import Rounding
from zpruner.rankings import Ranking
from zpruner.tuning import Tuning
from zpruner.types import DERIVATIVES, ComparisonGroup, LayerStats, SparsityPattern, Stat
from zpruner.updates import WeightUpdate

RANKED_BY = {
    StructureKind.NEURONS: "obs",
    StructureKind.GROUPS: "obs",
    StructureKind.BLOCKS: "cosine",
    StructureKind.EXPERTS: "reap",
}
"""What to name where nothing ranks structures of a kind."""


@dataclass(frozen=True)
class CompositionParts:
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
