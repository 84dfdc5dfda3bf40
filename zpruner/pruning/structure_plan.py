"""Which structures of a model a pattern removes, and the masks of single weights that say so.

A structured variant is described as any other: by a mask for every layer. Of what makes a structure the rows go, of
what reads it the columns; a block or an expert that goes has empty masks. What stays can be told from the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from zpruner.errors import InvalidPatternError, ModelStructureError
from zpruner.model import PrunableLayer
from zpruner.patterns import StructuredPattern, StructureKind
from zpruner.structures import Coupling, Couplings
from zpruner.types import Mask

_NEAR = 0.01
"""Shares that differ by no more are taken for what was asked for."""


@dataclass(frozen=True)
class StructurePlan:
    """What a pattern removes from a model.

    Attributes:
        couplings: of the model.
        layers: all prunable layers of the model.
        kept: coupling's name -> how many of its structures stay.
        pattern: that says so.
    """

    couplings: Couplings
    layers: tuple[PrunableLayer, ...]
    kept: Mapping[str, int]
    pattern: StructuredPattern

    @classmethod
    def of(cls, pattern: StructuredPattern, couplings: Couplings, layers: Iterable[PrunableLayer]) -> StructurePlan:
        """Return the plan.

        Raises:
            InvalidPatternError: the model lacks structures of a kind, or has too few for one to go; they lie in a layer
                that stays dense.
        """
        plan = cls(couplings, tuple(layers), couplings.kept(pattern), pattern)
        names = {layer.name for layer in plan.layers}
        for coupling in plan.chosen:
            for layer in plan.layers_of(coupling):
                if layer.name not in names:
                    raise InvalidPatternError(
                        f"layer {layer.name}",
                        f"a layer that stays dense, of which {pattern} cuts {coupling.kind}",
                        f"every layer that carries {coupling.kind}: each block loses as many",
                        f"Take it from model.ignore in params.yaml, or leave {coupling.kind} out.",
                    )
        return plan

    @property
    def words(self) -> str:
        """What stays: `20 of 24 neurons (17 % go where 25 % was asked for)`."""
        found: dict[str, None] = {}
        for coupling in self.chosen:
            kept, asked = self.kept[coupling.name], self.pattern.share(coupling.kind)
            gone = 1 - kept / coupling.count
            nearest = f" ({gone:.3g} of them go where {asked:.3g} was asked for)" if abs(gone - asked) > _NEAR else ""
            found[f"{kept} of {coupling.count} {coupling.kind} stay{nearest}"] = None
        return ", ".join(found)

    def within(self, layers: Iterable[PrunableLayer]) -> list[Coupling]:
        """Return the couplings of which structures go that lie in some layers of a block."""
        names = {layer.name for layer in layers}
        blocks = {layer.block for layer in layers}
        found = [coupling for coupling in self.chosen if coupling.block in blocks]
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
        return next((coupling for coupling in self.chosen if coupling.kind is StructureKind.BLOCKS), None)

    @property
    def chosen(self) -> list[Coupling]:
        """The couplings of which structures go."""
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
        for coupling in self.chosen:
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
