"""A composition: any score with any comparison group, mask refinement and weight update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from torch import Tensor

from zpruner.errors import (
    InvalidSettingError,
    MissingStatisticError,
    UnknownNameError,
    ZprunerError,
    did_you_mean,
)
from zpruner.masks import ALLOCATIONS, REFINEMENTS, Allocation, MaskRefinement, select
from zpruner.methods import METHODS, PruningMethod
from zpruner.registry import Registry
from zpruner.settings.explain import explain
from zpruner.settings.params import Choice, MethodSettings, Params
from zpruner.types import (
    ComparisonGroup,
    LayerStats,
    Mask,
    ScoreMatrix,
    SparsityPattern,
    Stat,
    check_weight,
)
from zpruner.updates import UPDATES, Correction, WeightUpdate

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Composition:
    """What a label in params.yaml under `methods` stands for."""

    method: PruningMethod
    group: ComparisonGroup
    refinement: MaskRefinement | None = None
    update: WeightUpdate | None = None
    allocation: Allocation | None = None
    correction: Correction | None = None

    @property
    def needs(self) -> frozenset[Stat]:
        """Every statistic that some part reads."""
        parts = [self.refinement, self.update, self.correction]
        return self.method.required().union(*(part.needs for part in parts if part is not None))

    @property
    def workspace(self) -> int:
        """The most square float32 matrices of a layer's input width that a part holds at once."""
        parts = [self.method, self.refinement, self.update, self.correction]
        return max(part.workspace for part in parts if part is not None)

    def correct(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the weight that scores, masks and updates start from, (out, in).

        That is the dense one, unless the composition corrects for what earlier pruned blocks changed in the layer's
        input. Where the statistics are those of the unpruned model there is nothing to correct.
        """
        if self.correction is None or stats.cross is None:
            return weight
        return self.correction.correct(weight.float(), stats)

    def score(self, weight: Tensor, stats: LayerStats, pattern: SparsityPattern | None = None) -> ScoreMatrix:
        """Return the importance of every weight, checked.

        Args:
            weight: float (out, in).
            stats: of the layer's input.
            pattern: for methods with `depends_on_pattern`.

        Raises:
            NonFiniteError: NaN or infinity in the weights or scores; names the layer.
            ShapeMismatchError: statistics of another width than the weight's.
        """
        check_weight(weight, stats)
        return ScoreMatrix(stats.layer, self.method.score(weight.float(), stats, pattern))

    def mask(self, scores: ScoreMatrix, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Mask:
        """Return the keep mask of one layer: exact selection, then the refinement where there is one."""
        keep = derive_mask(self, scores, pattern)
        if self.refinement is not None:
            keep = Mask(stats.layer, self.refinement.refine(weight.float(), keep.keep, stats, pattern))
        return keep

    def apply(self, weight: Tensor, mask: Mask, stats: LayerStats | None) -> Tensor:
        """Return the pruned weight, zeros in place: the update's, or the dense one masked. Shape and dtype stay."""
        if self.update is None:
            return weight * mask.keep
        if stats is None:
            raise MissingStatisticError(
                f"layer {mask.layer}",
                "no statistics",
                "those that the weight update reads",
                "Pass the layer's statistics.",
            )
        updated = self.update.update(weight.float(), mask.keep, stats)
        return (updated * mask.keep).to(weight.dtype)


def derive_mask(composition: Composition, scores: ScoreMatrix, pattern: SparsityPattern) -> Mask:
    """Return the mask that scores alone give: by `pattern` and the composition's comparison group."""
    if composition.method.depends_on_pattern:
        return Mask(scores.layer, scores.values > 0)
    return Mask(scores.layer, select(scores.values, pattern, composition.group, scores.layer))


def compose(settings: MethodSettings) -> Composition:
    """Return the composition that an entry of params.yaml describes.

    Raises:
        UnknownNameError: a score, refinement or update that is not registered.
        InvalidSettingError: a hyper-parameter that is unknown or out of range; a group that the method cannot use.
    """
    method = _build(METHODS, settings.score, settings.settings)
    if method.depends_on_pattern and settings.group not in (None, method.default_group):
        raise InvalidSettingError(
            f"method '{settings.score}'",
            f"group '{settings.group}'",
            f"none, or '{method.default_group}': it chooses its mask itself",
            "Remove the group.",
        )
    return Composition(
        method,
        settings.group or method.default_group,
        None if settings.refine is None else _build_choice(REFINEMENTS, settings.refine),
        None if settings.update is None else _build_choice(UPDATES, settings.update),
        None if settings.allocate is None else _allocation(settings.allocate),
        None if settings.correct is None else _construct(Correction, "correction", settings.correct),
    )


def compose_all(params: Params) -> dict[str, Composition]:
    """Return label -> composition of every entry under `methods`.

    Raises:
        UnknownNameError, InvalidSettingError, InvalidPatternError: names the label, and the sparsity that it cannot be
            combined with.
    """
    found = {}
    for label, settings in params.methods.items():
        where = f"methods.{label}"
        try:
            found[label] = compose(settings)
            if (allocation := found[label].allocation) is not None:
                for sparsity in params.sparsities:
                    where = f"methods.{label} with sparsities.{sparsity}"
                    allocation.check(params.pattern(sparsity))
        except ZprunerError as error:
            raise type(error)(f"{where}: {error.where}", error.got, error.expected, error.action) from None
    return found


def _allocation(choice: Choice) -> Allocation:
    found = ALLOCATIONS.get(choice.name)
    if found is None:
        raise UnknownNameError("allocation", f"'{choice.name}'", "a known name", did_you_mean(choice.name, ALLOCATIONS))
    return _construct(found, f"allocation '{choice.name}'", choice.settings)


def _build_choice(registry: Registry[M], choice: Choice) -> M:
    return _build(registry, choice.name, choice.settings)


def _build(registry: Registry[M], name: str, settings: dict[str, object]) -> M:
    return _construct(registry.find(name), f"{registry.noun} '{name}'", settings)


def _construct(found: type[M], where: str, settings: dict[str, object]) -> M:
    try:
        return found(**settings)
    except ValidationError as error:
        raise explain(error, where, found) from None
