"""Which structures stay: chosen by rankings or by the summed scores of single weights, block after block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from zpruner.methods import PruningMethod
from zpruner.model import PrunableLayer
from zpruner.patterns import StructureKind
from zpruner.pruning.composition import Composition, Pruned
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.rankings import Columns, Structures, keep_highest
from zpruner.structures import Coupling
from zpruner.types import LayerStats, Mask, check_weight

Read = Callable[[PrunableLayer], tuple[Tensor, LayerStats]]
"""Given a layer, returns its weight, float (out, in), and the statistics of its input."""
Scores = Callable[[PrunableLayer], Tensor]
"""Given a layer, returns the composition's scores of its weights, float32 (out, in)."""
Distances = Callable[[Tensor], Tensor]
"""See `Structures.distances`."""
Contributions = Callable[[Mapping[str, int]], Mapping[str, Tensor]]
"""Given mixtures and their numbers of experts, returns for each of them `Structures.contributions`."""


def look(
    plan: StructurePlan,
    composition: Composition,
    read: Read,
    scores: Scores,
    distances: Distances,
    contributions: Contributions,
) -> StructureChoice:
    """Return a plan with what is chosen, or measured, in the unpruned model before anything is pruned.

    Args:
        plan: what goes.
        composition: what ranks structures.
        read: of the unpruned model.
        scores: of the unpruned model.
        distances: how far blocks turn the hidden state.
        contributions: what experts add.
    """
    choice = StructureChoice(plan)
    if (depth := plan.depth) is not None:
        ranking = composition.ranking(StructureKind.BLOCKS)
        if isinstance(ranking, PruningMethod):
            blocks = choice.by_members(depth, ranking, composition, read, scores)
        else:
            blocks = ranking.choose(_seen(depth, distances=distances), plan.kept[depth.name])
        choice = replace(choice, blocks=blocks)
    mixtures = {c.name: c.count for c in plan.chosen if c.kind is StructureKind.EXPERTS}
    if mixtures and not isinstance(composition.ranking(StructureKind.EXPERTS), PruningMethod):
        choice = replace(choice, contributions=contributions(mixtures))
    return choice


@dataclass(frozen=True)
class StructureChoice:
    """A plan, which blocks stay, bool (blocks,), None: all of them, and what experts add where that ranks them."""

    plan: StructurePlan
    blocks: Tensor | None = None
    contributions: Mapping[str, Tensor] = field(default_factory=dict)

    def stays(self, block: int) -> bool:
        """Return whether a block stays."""
        return self.blocks is None or bool(self.blocks[block])

    def keep(
        self, layers: Sequence[PrunableLayer], composition: Composition, read: Read, scores: Scores
    ) -> dict[str, Tensor]:
        """Return which structures in some layers of a block stay: coupling's name -> bool (count,).

        Args:
            layers: with every coupling all layers that it lies in.
            composition: what ranks structures.
            read: of the model that the block is a part of.
            scores: of the same.
        """
        found = {}
        for coupling in self.plan.within(layers):
            ranking, kept = composition.ranking(coupling.kind), self.plan.kept[coupling.name]
            if isinstance(ranking, PruningMethod):
                chosen = self.by_members if coupling.kind is StructureKind.EXPERTS else self.by_columns
                found[coupling.name] = chosen(coupling, ranking, composition, read, scores)
            elif coupling.kind is StructureKind.EXPERTS:
                added = self.contributions[coupling.name]
                found[coupling.name] = ranking.choose(_seen(coupling, contributions=added), kept)
            else:
                columns = tuple(Columns(places, _loading(la, composition, read)) for places, la in _readers(coupling))
                found[coupling.name] = ranking.choose(_seen(coupling, columns), kept).cpu()
        return found

    def masks(
        self, layers: Sequence[PrunableLayer], composition: Composition, read: Read, scores: Scores
    ) -> list[Mask]:
        """Return the masks of some layers of a block, on the CPU; arguments as of `keep`."""
        if not self.stays(layers[0].block):
            return [Mask(layer.name, torch.zeros(layer.shape, dtype=torch.bool)) for layer in layers]
        return list(self.plan.masks(layers, self.keep(layers, composition, read, scores)))

    def prune(
        self, layers: Iterable[PrunableLayer], composition: Composition, read: Read
    ) -> Iterator[tuple[PrunableLayer, Pruned]]:
        """Yield every layer with what becomes of it, as the statistics of one model say.

        Args:
            layers: all of a model's, those of a block one after another.
            composition: what ranks structures, and updates the weights that read them.
            read: gives a layer's weight and statistics.
        """

        def scores(layer: PrunableLayer) -> Tensor:
            return composition.score(*read(layer)).values

        for _, members in groupby(layers, key=lambda layer: layer.block):
            together = list(members)
            by_name = {mask.layer: mask for mask in self.masks(together, composition, read, scores)}
            for layer in together:
                weight, stats = read(layer)
                mask, biased = by_name[layer.name].to(weight.device), layer.bias is not None
                yield layer, composition.prune_by(weight, mask, stats, biased=biased)

    def by_members(
        self, coupling: Coupling, ranking: PruningMethod, composition: Composition, read: Read, scores: Scores
    ) -> Tensor:
        """Return which blocks or experts stay, by the sum of their weights' scores: bool (count,)."""
        score = _scoring(ranking, composition, read, scores)
        totals = [
            sum(float(score(layer).sum(dtype=torch.float64)) for layer in each) for each in self.plan.members(coupling)
        ]
        importance = torch.tensor(totals, dtype=torch.float64)
        return keep_highest(importance, self.plan.kept[coupling.name], _fixed(coupling))

    def by_columns(
        self, coupling: Coupling, ranking: PruningMethod, composition: Composition, read: Read, scores: Scores
    ) -> Tensor:
        """Return which structures stay, by the summed scores of what reads them: bool (count,)."""
        score = _scoring(ranking, composition, read, scores)
        found = torch.zeros(coupling.count, dtype=torch.float64)
        for places, layer in _readers(coupling):
            found += score(layer).sum(0, dtype=torch.float64).cpu()[places].sum(1)
        return keep_highest(found, self.plan.kept[coupling.name], _fixed(coupling))


def _readers(coupling: Coupling) -> list[tuple[Tensor, PrunableLayer]]:
    """Return the layers that read structures, with the columns of each."""
    return [(slices.index, slices.layer) for slices in coupling.reads if slices.layer is not None]


def _seen(
    coupling: Coupling,
    reads: tuple[Columns, ...] = (),
    distances: Distances | None = None,
    contributions: Tensor | None = None,
) -> Structures:
    return Structures(
        coupling.name, coupling.kind, coupling.count, reads, distances, contributions, fixed=_fixed(coupling)
    )


def _fixed(coupling: Coupling) -> Tensor | None:
    return None if coupling.removable is None else ~coupling.removable


def _loading(layer: PrunableLayer, composition: Composition, read: Read) -> Callable[[], tuple[Tensor, LayerStats]]:
    def load() -> tuple[Tensor, LayerStats]:
        weight, stats = read(layer)
        check_weight(weight, stats)
        return weight.float(), composition.seen(stats, layer.bias is not None)

    return load


def _scoring(ranking: PruningMethod, composition: Composition, read: Read, scores: Scores) -> Scores:
    """Return what scores the weights of a layer: the composition's scores, or those of what ranks in its place."""
    if ranking is composition.method:
        return scores

    def score(layer: PrunableLayer) -> Tensor:
        weight, stats = read(layer)
        check_weight(weight, stats)
        return ranking.score(weight.float(), stats)

    return score
