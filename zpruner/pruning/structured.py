"""Which structures of a model stay, and the masks of single weights that say so.

A structured variant is described as any other: by a mask for every layer. Of what makes a structure the rows go, of
what reads it the columns; a block or an expert that goes has empty masks. What stays can be told from the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from zpruner.errors import InvalidPatternError, ModelStructureError
from zpruner.methods import PruningMethod
from zpruner.model import PrunableLayer
from zpruner.patterns import StructuredPattern, StructureKind
from zpruner.pruning.composition import Composition, Pruned
from zpruner.rankings import Columns, Structures, keep_highest
from zpruner.structures import Coupling, Couplings
from zpruner.types import LayerStats, Mask, check_weight

Read = Callable[[PrunableLayer], tuple[Tensor, LayerStats]]
"""Given a layer, returns its weight, float (out, in), and the statistics of its input."""
Scores = Callable[[PrunableLayer], Tensor]
"""Given a layer, returns the composition's scores of its weights, float32 (out, in)."""
Distances = Callable[[Tensor], Tensor]
"""See `Structures.distances`."""
Contributions = Callable[[Mapping[str, int]], Mapping[str, Tensor]]
"""Given mixtures and their numbers of experts, returns for each of them `Structures.contributions`."""


@dataclass(frozen=True)
class StructurePlan:
    """What a pattern removes from a model.

    Attributes:
        couplings: of the model.
        layers: all prunable layers of the model.
        kept: coupling's name -> how many of its structures stay.
    """

    couplings: Couplings
    layers: tuple[PrunableLayer, ...]
    kept: Mapping[str, int]

    @classmethod
    def of(cls, pattern: StructuredPattern, couplings: Couplings, layers: Iterable[PrunableLayer]) -> StructurePlan:
        """Return the plan.

        Raises:
            InvalidPatternError: the model lacks structures of a kind, or has too few for one to go; they lie in a layer
                that stays dense.
        """
        plan = cls(couplings, tuple(layers), couplings.kept(pattern))
        names = {layer.name for layer in plan.layers}
        for coupling in plan._chosen:
            for layer in plan.layers_of(coupling):
                if layer.name not in names:
                    raise InvalidPatternError(
                        f"layer {layer.name}",
                        f"a layer that stays dense, of which {pattern} cuts {coupling.kind}",
                        f"every layer that carries {coupling.kind}: each block loses as many",
                        f"Take it from model.ignore in params.yaml, or leave {coupling.kind} out.",
                    )
        return plan

    def within(self, layers: Iterable[PrunableLayer]) -> list[Coupling]:
        """Return the couplings of which structures go that lie in some layers of a block."""
        names = {layer.name for layer in layers}
        blocks = {layer.block for layer in layers}
        found = [coupling for coupling in self._chosen if coupling.block in blocks]
        return [coupling for coupling in found if names & self.names_in(coupling)]

    def layers_of(self, coupling: Coupling) -> list[PrunableLayer]:
        """Return the layers that structures of a block are made of."""
        if coupling.kind is StructureKind.EXPERTS:
            return [layer for each in self.members(coupling) for layer in each]
        return [slices.layer for slices in (*coupling.writes, *coupling.reads) if slices.layer is not None]

    def names_in(self, coupling: Coupling) -> set[str]:
        """Return the names of the layers that structures of a block are made of."""
        return {layer.name for layer in self.layers_of(coupling)}

    @cached_property
    def depth(self) -> Coupling | None:
        """The blocks, where some of them go."""
        return next((coupling for coupling in self._chosen if coupling.kind is StructureKind.BLOCKS), None)

    @property
    def _chosen(self) -> list[Coupling]:
        return [coupling for coupling in self.couplings.found if coupling.name in self.kept]

    def members(self, coupling: Coupling) -> list[list[PrunableLayer]]:
        """Return the layers that each block, or each expert, consists of."""
        found: list[list[PrunableLayer]] = [[] for _ in range(coupling.count)]
        stacks = {slices.tensor for slices in coupling.writes}
        for layer in self.layers:
            if coupling.entries is not None and layer.name.startswith(f"{coupling.entries}."):
                found[int(layer.name.removeprefix(f"{coupling.entries}.").split(".")[0])].append(layer)
            elif coupling.entries is None and layer.tensor in stacks:
                found[layer.part].append(layer)
        return found

    def look(
        self, composition: Composition, read: Read, scores: Scores, distances: Distances, contributions: Contributions
    ) -> StructureChoice:
        """Return the plan with what is chosen, or measured, in the unpruned model before anything is pruned.

        Args:
            composition: what ranks structures.
            read: of the unpruned model.
            scores: of the unpruned model.
            distances: how far blocks turn the hidden state.
            contributions: what experts add.
        """
        blocks = None
        if (depth := self.depth) is not None:
            ranking = composition.ranking(StructureKind.BLOCKS)
            if isinstance(ranking, PruningMethod):
                blocks = self._choose_members(depth, composition, read, scores)
            else:
                seen = Structures(depth.name, depth.kind, depth.count, distances=distances, fixed=_fixed(depth))
                blocks = ranking.choose(seen, self.kept[depth.name])
        mixtures = {c.name: c.count for c in self._chosen if c.kind is StructureKind.EXPERTS}
        ranked = mixtures and not isinstance(composition.ranking(StructureKind.EXPERTS), PruningMethod)
        return StructureChoice(self, blocks, contributions(mixtures) if ranked else {})

    def choose(
        self,
        composition: Composition,
        layers: Sequence[PrunableLayer],
        read: Read,
        scores: Scores,
        contributions: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return which structures in some layers of a block stay: coupling's name -> bool (count,)."""
        return {
            coupling.name: self._choose_members(coupling, composition, read, scores, contributions or {})
            if coupling.kind is StructureKind.EXPERTS
            else self._choose_read(coupling, composition, read, scores)
            for coupling in self.within(layers)
        }

    def masks(self, layers: Sequence[PrunableLayer], keep: Mapping[str, Tensor]) -> Iterator[Mask]:
        """Yield the masks of some layers of a block, on the CPU.

        Args:
            layers: with every coupling all layers that it lies in.
            keep: of these couplings, name -> bool (count,).
        """
        rows = {layer.name: torch.ones(layer.out_features, dtype=torch.bool) for layer in layers}
        columns = {layer.name: torch.ones(layer.in_features, dtype=torch.bool) for layer in layers}
        for coupling in self.within(layers):
            gone = ~keep[coupling.name].cpu()
            if coupling.kind is StructureKind.EXPERTS:
                for layer in (layer for index in torch.nonzero(gone) for layer in self.members(coupling)[int(index)]):
                    rows[layer.name][:] = False
                continue
            for slices in (*coupling.writes, *coupling.reads):
                if slices.layer is not None:
                    (columns if slices.axis else rows)[slices.layer.name][slices.places(gone)] = False
        for layer in layers:
            yield Mask(layer.name, rows[layer.name].unsqueeze(1) & columns[layer.name])

    def kept_of(self, mask: Callable[[PrunableLayer], Tensor]) -> dict[str, Tensor]:
        """Return which structures stay, coupling's name -> bool (count,), as the layers' masks say.

        Args:
            mask: given a layer, returns its mask, bool (out, in).

        Raises:
            ModelStructureError: masks of another pattern or model.
        """
        found = {}
        for coupling in self._chosen:
            number = self.kept[coupling.name]
            if coupling.kind in (StructureKind.BLOCKS, StructureKind.EXPERTS):
                members = self.members(coupling)
                keep = torch.tensor([any(bool(mask(layer).any()) for layer in each) for each in members])
            else:
                keep = torch.zeros(coupling.count, dtype=torch.bool)
                for slices in coupling.reads:
                    if slices.layer is not None:
                        keep |= mask(slices.layer).any(0)[slices.index].any(1)
            if coupling.block is not None and not keep.any():  # all of it goes: any will do
                keep[:number] = True
            if int(keep.sum()) != number:
                raise ModelStructureError(
                    f"masks of {coupling.name}",
                    f"{int(keep.sum())} of {coupling.count} {coupling.kind} that stay",
                    f"{number}",
                    "Run the mask stage again.",
                )
            found[coupling.name] = keep
        return found

    def _choose_members(
        self,
        coupling: Coupling,
        composition: Composition,
        read: Read,
        scores: Scores,
        contributions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Rank blocks or experts by the sum of their weights' scores, or as a ranking of them says."""
        ranking = composition.ranking(coupling.kind)
        if not isinstance(ranking, PruningMethod):
            added = (contributions or {}).get(coupling.name)
            structures = Structures(
                coupling.name, coupling.kind, coupling.count, contributions=added, fixed=_fixed(coupling)
            )
            return ranking.choose(structures, self.kept[coupling.name])
        score = _scoring(ranking, composition, read, scores)
        totals = [
            sum(float(score(layer).sum(dtype=torch.float64)) for layer in each) for each in self.members(coupling)
        ]
        importance = torch.tensor(totals, dtype=torch.float64)
        return keep_highest(importance, self.kept[coupling.name], _fixed(coupling))

    def _choose_read(self, coupling: Coupling, composition: Composition, read: Read, scores: Scores) -> Tensor:
        """Rank structures by what reads them."""
        ranking, kept = composition.ranking(coupling.kind), self.kept[coupling.name]
        readers = [(slices, slices.layer) for slices in coupling.reads if slices.layer is not None]
        if isinstance(ranking, PruningMethod):
            score = _scoring(ranking, composition, read, scores)
            found = torch.zeros(coupling.count, dtype=torch.float64)
            for slices, layer in readers:
                found += score(layer).sum(0, dtype=torch.float64).cpu()[slices.index].sum(1)
            return keep_highest(found, kept, _fixed(coupling))
        columns = tuple(Columns(slices.index, _loading(layer, read)) for slices, layer in readers)
        structures = Structures(coupling.name, coupling.kind, coupling.count, columns, fixed=_fixed(coupling))
        return ranking.choose(structures, kept).cpu()


@dataclass(frozen=True)
class StructureChoice:
    """A plan, which blocks stay, bool (blocks,), None: all of them, and what experts add where that ranks them."""

    plan: StructurePlan
    blocks: Tensor | None
    contributions: Mapping[str, Tensor]

    def stays(self, block: int) -> bool:
        """Return whether a block stays."""
        return self.blocks is None or bool(self.blocks[block])

    def masks(
        self, layers: Sequence[PrunableLayer], composition: Composition, read: Read, scores: Scores
    ) -> list[Mask]:
        """Return the masks of some layers of a block, on the CPU.

        Args:
            layers: with every coupling all layers that it lies in.
            composition: what ranks structures.
            read: of the model that the block is a part of.
            scores: of the same.
        """
        if not self.stays(layers[0].block):
            return [Mask(layer.name, torch.zeros(layer.shape, dtype=torch.bool)) for layer in layers]
        keep = self.plan.choose(composition, layers, read, scores, self.contributions)
        return list(self.plan.masks(layers, keep))

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
                yield layer, composition.prune_by(weight, by_name[layer.name].to(weight.device), stats)


def _fixed(coupling: Coupling) -> Tensor | None:
    return None if coupling.removable is None else ~coupling.removable


def _loading(layer: PrunableLayer, read: Read) -> Callable[[], tuple[Tensor, LayerStats]]:
    def load() -> tuple[Tensor, LayerStats]:
        weight, stats = read(layer)
        check_weight(weight, stats)
        return weight.float(), stats

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
