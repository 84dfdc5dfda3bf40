"""Which parts of which tensors make up one structure, such as an MLP's neuron: what is cut together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from zpruner.errors import InvalidPatternError, ShapeMismatchError, did_you_mean
from zpruner.model.layers import PrunableLayer
from zpruner.patterns import StructuredPattern, StructureKind
from zpruner.structures.sizes import Size


@dataclass(frozen=True, eq=False)
class Slices:
    """Where structures lie on one axis of one parameter.

    Attributes:
        tensor: name of the parameter.
        axis: of what `view` returns.
        index: int64 (count, width): `index[i]` are the places of structure i, ascending.
        layer: whose weight it is: axis 0 are its outputs, 1 its inputs. None: a bias, a norm, a stack of experts.
        part: of a parameter that holds one entry per expert and is no layer's weight: the expert.
    """

    tensor: str
    axis: int
    index: Tensor
    layer: PrunableLayer | None = None
    part: int | None = None

    def view(self, tensor: Tensor) -> Tensor:
        """Return the part of the parameter in which structures lie along `axis`, sharing its memory."""
        if self.layer is not None:
            return self.layer.view(tensor)
        return tensor if self.part is None else tensor[self.part]

    def places(self, chosen: Tensor) -> Tensor:
        """Return the places of the structures that `chosen`, bool (count,), has: int64, ascending."""
        return self.index[chosen].reshape(-1).sort().values


@dataclass(frozen=True, eq=False)
class Coupling:
    """Structures of which each can be removed by itself.

    Attributes:
        kind: what they are.
        name: unique: the layer that reads them; of experts the module that holds them, of blocks their list.
        block: index of their decoder block; None for blocks.
        count: how many there are.
        size: what says how many there are; all couplings of one size keep the same share of theirs.
        step: how many go at a time, so that every coupling of that size can keep the same share.
        writes: what makes them: rows of weights, biases, norms, and of experts all that is an expert's.
        reads: what reads them: columns of weights. Where these are zero, the structure has no effect.
        entries: path of the module list of which each entry is one, for blocks and for experts that are modules.
        removable: bool (count,); None: every one.
        divisions: of experts in a row that a router chooses among first; as many stay in each.
    """

    kind: StructureKind
    name: str
    block: int | None
    count: int
    size: str
    step: int
    writes: tuple[Slices, ...]
    reads: tuple[Slices, ...]
    entries: str | None = None
    removable: Tensor | None = None
    divisions: int = 1


@dataclass(frozen=True)
class Couplings:
    """What can be cut out of one model."""

    found: tuple[Coupling, ...]
    sizes: Mapping[str, Size] = field(default_factory=lambda: MappingProxyType({}))
    """What says how many there are, by its name."""
    missing: Mapping[StructureKind, str] = field(default_factory=lambda: MappingProxyType({}))
    """Kinds that cannot be cut -> why, in a few words."""

    def why_not(self, kind: StructureKind) -> str | None:
        """Return why the model cannot lose structures of a kind; None where it can."""
        return self.missing.get(kind)

    def of(self, kind: StructureKind) -> tuple[Coupling, ...]:
        """Return the couplings of a kind, in the order of blocks.

        Raises:
            InvalidPatternError: the model has none that can be cut.
        """
        if kind in self.missing:
            raise InvalidPatternError(
                f"sparsity '{kind.value}'", self.missing[kind], f"a model with {kind.value} to cut", "Choose another."
            )
        return tuple(coupling for coupling in self.found if coupling.kind is kind)

    def named(self, name: str) -> Coupling:
        """Return the coupling of that name.

        Raises:
            InvalidPatternError: none.
        """
        if name not in self._by_name:
            expected, action = "a coupling of the model", did_you_mean(name, list(self._by_name))
            raise InvalidPatternError("structures", f"'{name}'", expected, action)
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Coupling]:
        return {coupling.name: coupling for coupling in self.found}

    def kept(self, pattern: StructuredPattern) -> dict[str, int]:
        """Return how many structures each coupling keeps under a pattern, of the kinds that it names.

        Raises:
            InvalidPatternError: the model has none of a kind, or so few that none or all would go.
        """
        kept = {}
        for kind in pattern:
            for coupling in self.of(kind):
                alike = [other for other in self.found if other.size == coupling.size]
                # The share that all of them can keep: what a multiple asks of one, it asks of all.
                multiple = pattern.multiple if kind is StructureKind.NEURONS else 1
                units = math.lcm(*(multiple // math.gcd(multiple, other.step) for other in alike))
                step = coupling.step * units
                kept[coupling.name] = pattern.kept(kind, coupling.count, coupling.name, step)
        return kept

    def check(self, keep: Mapping[str, Tensor]) -> None:
        """Raise unless `keep`, name -> bool (count,), can be cut: every coupling of a size, the same share of each.

        Raises:
            ShapeMismatchError: not bool (count,).
            InvalidPatternError: an unknown name, a coupling left out, nothing kept, or unequal shares.
        """
        shares: dict[str, tuple[str, int, int]] = {}
        for name, chosen in keep.items():
            coupling = self.named(name)
            if chosen.dtype != torch.bool or tuple(chosen.shape) != (coupling.count,):
                raise ShapeMismatchError(
                    f"structures of {name}",
                    f"{chosen.dtype} of shape {tuple(chosen.shape)}",
                    f"bool of shape ({coupling.count},)",
                    "Give one value for each of its structures.",
                )
            number = int(chosen.sum())
            if number == 0:
                raise _unfit(name, f"none of {coupling.count} {coupling.kind.value} kept", "one at least")
            if coupling.removable is not None and not bool((chosen | coupling.removable).all()):
                bad = int((~chosen & ~coupling.removable).nonzero()[0])
                raise _unfit(name, f"number {bad} removed", "structures that the config can be without")
            stay = chosen.view(coupling.divisions, -1).sum(1)
            if int(stay.min()) != int(stay.max()):
                got = f"{', '.join(str(int(n)) for n in stay)} kept in its {coupling.divisions} divisions"
                raise _unfit(name, got, "as many in each, since the router chooses among divisions first")
            first = shares.setdefault(coupling.size, (name, number, coupling.count))
            if number * first[2] != first[1] * coupling.count:
                got = f"{number} of {coupling.count} kept, and {first[1]} of {first[2]} in {first[0]}"
                raise _unfit(name, got, "the same share in both, which one number of the config says")
        for coupling in self.found:
            if coupling.size in shares and coupling.name not in keep:
                raise _unfit(coupling.name, "nothing to keep", f"what is kept, as in {shares[coupling.size][0]}")


def _unfit(name: str, got: str, expected: str) -> InvalidPatternError:
    return InvalidPatternError(f"structures of {name}", got, expected, "Choose what is kept again.")
