"""What can be put into another order without a change of what the model computes: an exact symmetry, found by probing.

In a `Symmetry` item i lies at the places `index[i]` of each of its `Slices`; items of one division may change places.
Neurons of an MLP are one division. Value dimensions of attention are one division for each group of heads that shares
values: rows of v (and its bias), and the columns of o of all heads in that group. The channels of the
residual stream are one division of the whole model. The model is run on random weights
before and after, and a symmetry counts only if its hidden states are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import InvalidPatternError, ShapeMismatchError
from zpruner.model.inventory import take_inventory
from zpruner.patterns import Permutation
from zpruner.structures.channels import Maker, follow_readers
from zpruner.structures.coupling import Slices
from zpruner.structures.dependence import Followed, Reader, Rows
from zpruner.structures.equality import equal
from zpruner.structures.probe import Probe, is_repeated
from zpruner.structures.sizes import empty_of
from zpruner.structures.slicing import move_slices
from zpruner.structures.stream import find_stream
from zpruner.structures.widths import sizes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MOVABLE = frozenset({Permutation.NEURONS, Permutation.HEADS, Permutation.STREAM})
"""What a model computes the same with in another order, if anything of it."""


_WHY = {
    Permutation.NEURONS: "neurons whose order counts, or that are not made apart",
    Permutation.HEADS: "heads whose values' order counts, or that are not made apart",
    Permutation.STREAM: "a residual stream whose order counts, or that not only known modules read and add to",
}
"""Why nothing of a kind may move."""


@dataclass(frozen=True, eq=False)
class Symmetry:
    """Items of one kind that may change places.

    Attributes:
        kind: what they are.
        name: unique: the layer that reads them; of the stream, its kind.
        block: index of their decoder block; None for the stream.
        count: how many there are.
        divisions: how many runs of equally many items there are; items change places within theirs.
        writes: what makes them: rows of weights, biases, norms.
        reads: what reads them: columns of weights.
    """

    kind: Permutation
    name: str
    block: int | None
    count: int
    divisions: int
    writes: tuple[Slices, ...]
    reads: tuple[Slices, ...]

    @property
    def length(self) -> int:
        """How many items a division has."""
        return self.count // self.divisions

    def checked(self, order: Tensor | None) -> Tensor:
        """Return an order, the old place of each item, if it is one.

        Raises:
            ShapeMismatchError: not every item once, or one outside of its division.
        """
        return check_order(self.name, self.count, order, self.divisions)

    @property
    def slices(self) -> tuple[Slices, ...]:
        """Everything that moves."""
        return (*self.writes, *self.reads)


@dataclass(frozen=True)
class Symmetries:
    """What may be put into another order in one model."""

    found: tuple[Symmetry, ...]
    missing: Mapping[Permutation, str] = field(default_factory=lambda: MappingProxyType({}))
    """Kinds of which there are none -> why, in a few words."""

    def of(self, kind: Permutation) -> tuple[Symmetry, ...]:
        """Return the symmetries of a kind, in the order of blocks.

        Raises:
            InvalidPatternError: the model has none.
        """
        if kind in self.missing:
            expected = f"a model that computes the same with its {kind.value} in another order"
            raise InvalidPatternError(f"permute '{kind.value}'", self.missing[kind], expected, f"Leave {kind} out.")
        return tuple(symmetry for symmetry in self.found if symmetry.kind is kind)


def check_order(name: str, count: int, order: Tensor | None, divisions: int = 1) -> Tensor:
    """Return an order, int64 (count,), if it has every item once, each in its division.

    Raises:
        ShapeMismatchError: it has not; names the layer that reads the items.
    """
    length = count // divisions
    if order is not None and order.dtype == torch.int64 and tuple(order.shape) == (count,):
        inside = order.view(divisions, -1) - torch.arange(divisions)[:, None] * length
        if torch.equal(inside.sort(dim=1).values, torch.arange(length).expand_as(inside)):
            return order
    got = "nothing" if order is None else f"{order.dtype} of shape {tuple(order.shape)}"
    raise ShapeMismatchError(
        f"order of {name}",
        f"{got} that is no order",
        f"int64 of shape ({count},), every item once, each in its run of {length}",
        "Find the order again.",
    )


def find_symmetries(
    model: PreTrainedModel, kinds: Collection[Permutation] = MOVABLE, blocks: str | None = None
) -> Symmetries:
    """Return what may be put into another order in a model.

    Only its config is read: the weights may lie anywhere. Like `find_couplings` it runs the model on a few random
    tokens, with random weights that the blocks share.

    Args:
        model: any causal language model; meta tensors will do.
        kinds: what is looked for.
        blocks: path of the decoder blocks where it cannot be found by structure.

    Raises:
        ModelStructureError: as `take_inventory`.
    """
    empty = empty_of(model.config)
    inventory = take_inventory(empty, blocks)
    found: list[Symmetry] = []
    with torch.inference_mode(False), torch.enable_grad():
        probe = Probe.of(empty, inventory.blocks)
        weights = probe.random_weights(inventory.layers, 0)
        with torch.no_grad():
            proof = _Proof(probe, weights)
        inside = MOVABLE.intersection(kinds) - {Permutation.STREAM}
        for layer, reader, followed, alike in follow_readers(probe, weights, inventory.layers) if inside else ():
            for kind, divisions, columns, rows in _candidates(followed, reader, sizes_of(model.config)):
                maker = Maker(probe, weights, inventory.layers, layer, columns, rows)
                made = [
                    Symmetry(kind, each.layer.name, each.layer.block, each.count, divisions, each.writes, each.reads)
                    for block in alike
                    for each in maker.everywhere(block)
                ]
                if made and proof.holds(made):
                    found += made
                    break
        if Permutation.STREAM in kinds and (slices := find_stream(probe, weights, inventory)) is not None:
            reads = tuple(each for each in slices if each.layer is not None and each.axis == 1)
            writes = tuple(each for each in slices if each not in reads)
            kind, count = Permutation.STREAM, len(slices[0].index)
            found.append(Symmetry(kind, kind.value, None, count, 1, writes, reads))
    found = [symmetry for symmetry in found if symmetry.kind in kinds]
    found.sort(key=lambda symmetry: -1 if symmetry.block is None else symmetry.block)
    absent = MOVABLE.intersection(kinds) - {symmetry.kind for symmetry in found}
    return Symmetries(tuple(found), {kind: _WHY[kind] for kind in absent})


def _candidates(
    followed: Followed, reader: Reader, sizes: set[int]
) -> Iterator[tuple[Permutation, int, Tensor, tuple[Rows, ...]]]:
    """Yield what a reader's channels may be: the kind, how many divisions, their columns, and what makes them.

    First every channel by itself, in one division. Then those of heads, of which `shared` in a row may read the same
    values: the more items and the fewer divisions, the better.
    """
    width = reader.channels.shape[1]
    alone = followed.rows(reader, width)
    if alone:
        kind = Permutation.HEADS if followed.is_linear(reader, alone) else Permutation.NEURONS
        yield kind, 1, torch.arange(width)[:, None], alone
    heads = [number for number in sizes if 1 < number < width and width % number == 0]
    groups = [(number, shared) for number in heads for shared in (1, *heads, number) if number % shared == 0]
    rows: dict[tuple[int, ...], tuple[Rows, ...]] = {}
    for number, shared in sorted(set(groups), key=lambda pair: (pair[1], pair[0])):
        length = width // number
        divisions = number // shared
        columns = torch.arange(width).view(divisions, shared, length).transpose(1, 2).reshape(-1, shared)
        item = torch.empty(width, dtype=torch.long)
        item[columns] = torch.arange(len(columns))[:, None]
        key = tuple(item.tolist())
        if key not in rows:
            rows[key] = followed.rows_of(reader, item, len(columns)) if shared > 1 else alone
        if rows[key]:
            yield Permutation.HEADS, divisions, columns, rows[key]


class _Proof:
    """Whether the model computes the same in another order, on random weights."""

    def __init__(self, probe: Probe, weights: Mapping[str, Tensor]) -> None:
        self._probe, self._last = probe, probe.last()
        self._weights = {n: tensor for n, tensor in weights.items() if (probe.block_of(n) or 0) <= self._last}
        self._wanted = probe.run(self._weights, self._last)

    def holds(self, symmetries: list[Symmetry]) -> bool:
        """Return whether it does with items of every symmetry moved, alike in blocks that share their weights."""
        return all(self._same(symmetries, choose) for choose in (_anywhere, _turned))

    def _same(self, symmetries: list[Symmetry], choose: Callable[[Symmetry, int], Tensor]) -> bool:
        owners = self._probe.owners()
        moves: dict[str, list[tuple[Slices, Tensor]]] = {}
        for symmetry in symmetries:
            assert symmetry.block is not None
            source = self._probe.moved(symmetry.reads[0].tensor, owners[symmetry.block])
            order = choose(symmetry, sum(source.encode()))
            for slices in symmetry.slices:
                moves.setdefault(slices.tensor, []).append((slices, order))
        with torch.no_grad():
            return equal(self._probe.run(self._moved(moves), self._last), self._wanted)

    def _moved(self, moves: Mapping[str, list[tuple[Slices, Tensor]]]) -> dict[str, Tensor]:
        """Return weights with items moved; blocks that share a weight share the result."""
        made: dict[int, Tensor] = {}
        moved = dict(self._weights)
        for name, tensor in self._weights.items():
            if name in moves:
                if id(tensor) not in made:
                    made[id(tensor)] = _move_all(tensor, moves[name])
                moved[name] = made[id(tensor)]
        return moved


def _move_all(tensor: Tensor, moves: list[tuple[Slices, Tensor]]) -> Tensor:
    """Return a copy of a weight with items moved; a stack of one matrix stays one, moved as its first is."""
    repeated = is_repeated(tensor)
    copy = tensor[:1].clone().expand(tensor.shape) if repeated else tensor.clone()
    for slices, order in moves:
        part = slices.part if slices.layer is None else slices.layer.part
        if not repeated or part in (None, 0):
            move_slices(copy, slices, order)
    return copy


def _anywhere(symmetry: Symmetry, seed: int) -> Tensor:
    """Return a random order: int64 (count,), in which items stay in their divisions."""
    generator = torch.Generator().manual_seed(seed)
    size = symmetry.length
    return torch.cat([torch.randperm(size, generator=generator) + d * size for d in range(symmetry.divisions)])


def _turned(symmetry: Symmetry, _: int) -> Tensor:
    """Return the order in which the items of the first division alone are turned round: a change even of two."""
    order = torch.arange(symmetry.count)
    order[: symmetry.length] = order[: symmetry.length].flip(0)
    return order
