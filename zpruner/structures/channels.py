"""Channels of a block that could be cut: for every layer, what makes the channels that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.model.layers import PrunableLayer
from zpruner.structures.coupling import Slices
from zpruner.structures.dependence import Followed, Reader, Rows
from zpruner.structures.probe import Probe


@dataclass(frozen=True, eq=False)
class Channels:
    """Channels that one layer reads, in groups that their own rows make.

    Attributes:
        layer: that reads them.
        count: of groups.
        writes: what makes them.
        reads: the layer's columns.
    """

    layer: PrunableLayer
    count: int
    writes: tuple[Slices, ...]
    reads: tuple[Slices, ...]

    @property
    def slices(self) -> tuple[Slices, ...]:
        """What makes and what reads them."""
        return (*self.writes, *self.reads)


def find_channels(
    probe: Probe, weights: Mapping[str, Tensor], layers: tuple[PrunableLayer, ...], sizes: Iterable[int]
) -> list[Channels]:
    """Return the channels of every layer that writes into the hidden state, of every block.

    They are taken in the finest groups that most rows are made for: query heads that share a key go with it. Left out
    are channels that are but a linear map of what the block is given: the rank of a product of two matrices.

    Args:
        probe: of the model.
        weights: of the probe.
        layers: that can be pruned.
        sizes: how many groups there may be.
    """
    counts = sorted(set(sizes), reverse=True)
    found: list[Channels] = []
    for layer, reader, followed, alike in follow_readers(probe, weights, layers):
        if (groups := _groups(followed, reader, counts)) is not None:
            count, rows = groups
            columns = torch.arange(layer.in_features).view(count, -1)
            maker = Maker(probe, weights, layers, layer, columns, rows)
            found += [made for block in alike for made in maker.everywhere(block)]
    return found


def follow_readers(
    probe: Probe, weights: Mapping[str, Tensor], layers: tuple[PrunableLayer, ...]
) -> Iterator[tuple[PrunableLayer, Reader, Followed, list[int]]]:
    """Yield each layer that writes into the hidden state, of the first block of every signature.

    With it come what it reads, the block that was run, and the blocks of that signature. Of the experts of a mixture
    there is one. Args as in `find_channels`.
    """
    known = {(layer.tensor, layer.part) for layer in layers}
    owners = probe.owners()
    for owner in dict.fromkeys(owners):
        followed = Followed(probe, weights, layers, owner)
        alike = [block for block, first in enumerate(owners) if first == owner]
        seen: set[str] = set()
        for reader in followed.readers:
            layer = next(x for x in layers if x.tensor == reader.tensor and x.part == reader.part)
            if (layer.pool or layer.name) in seen:
                continue
            seen.add(layer.pool or layer.name)
            untied = all((probe.moved(layer.tensor, block), layer.part) in known for block in alike)
            if untied and layer.out_features == followed.hidden:
                yield layer, reader, followed, alike


def _groups(followed: Followed, reader: Reader, sizes: list[int]) -> tuple[int, tuple[Rows, ...]] | None:
    """Return how many groups a reader's channels are, and what makes each; None where there is nothing to cut.

    Whatever makes a group makes the larger one that it lies in: where no number of large groups, a prime, has more rows
    than single channels have, none has.
    """
    width = reader.channels.shape[1]
    best = width, followed.rows(reader, width)
    most = {prime: _total(followed, followed.rows(reader, prime)) for prime in _primes(width)}
    for count in (size for size in sizes if 1 < size < width and width % size == 0):
        if max((total for prime, total in most.items() if count % prime == 0), default=0) > _total(followed, best[1]):
            rows = followed.rows(reader, count)
            if _total(followed, rows) > _total(followed, best[1]):
                best = count, rows
    if not best[1] or (best[0] == width and followed.is_linear(reader, best[1])):
        return None
    return best


def _total(followed: Followed, rows: Iterable[Rows]) -> int:
    """Return how many of layers' rows make single groups."""
    return sum(found.index.numel() for found in rows if followed.is_layer(found.tensor))


def _primes(number: int) -> list[int]:
    """Return the prime factors of a number, each once."""
    found = []
    prime = 2
    while number > 1:
        if number % prime == 0:
            found.append(prime)
            while number % prime == 0:
                number //= prime
        prime += 1
    return found


def _of_one(slices: Slices, layer: PrunableLayer) -> bool:
    """Return whether slices belong to the same expert as a layer, not to all that read what they make."""
    if layer.parts > 1:
        return slices.part is not None or (slices.layer is not None and slices.layer.parts > 1)
    holder, _, rest = (layer.pool or "").partition(".*.")
    return slices.tensor.startswith(f"{holder}.") and bool(rest)


class Maker:
    """Makes the channels of a layer's counterparts out of what was found of the layer.

    Args:
        probe: of the model.
        weights: of the probe.
        layers: that can be pruned.
        layer: that reads the channels.
        columns: int64 (groups, width), which of its inputs each group has.
        rows: what makes the groups.
    """

    def __init__(
        self,
        probe: Probe,
        weights: Mapping[str, Tensor],
        layers: tuple[PrunableLayer, ...],
        layer: PrunableLayer,
        columns: Tensor,
        rows: tuple[Rows, ...],
    ) -> None:
        self._probe, self._weights, self._layer, self._columns, self._rows = probe, weights, layer, columns, rows
        self._layers = {(entry.tensor, entry.part): entry for entry in layers}
        self._biases = {entry.bias for entry in layers if entry.parts == 1}

    def everywhere(self, block: int) -> Iterator[Channels]:
        """Yield the channels of the layer's counterpart in a block, and of its counterparts in all experts there."""
        here = self._probe.moved(self._layer.tensor, block)
        counterpart = self._layers[here, self._layer.part]
        pool = [e for e in self._layers.values() if e.pool == counterpart.pool] if counterpart.pool else [counterpart]
        for layer in pool:
            writes = tuple(self._writes(layer, block))
            if len(pool) == 1 or all(_of_one(slices, layer) for slices in writes):
                yield Channels(layer, len(self._columns), writes, (Slices(layer.tensor, 1, self._columns, layer),))

    def _writes(self, layer: PrunableLayer, block: int) -> Iterator[Slices]:
        for rows in self._rows:
            name = self._of_expert(self._probe.moved(rows.tensor, block), layer)
            writer = self._layers.get((name, layer.part if layer.parts > 1 else 0))
            writer = writer or self._layers.get((name, 0))
            if writer is not None:
                yield Slices(name, 0, rows.index, writer)
                if writer.parts == 1 and writer.bias is not None:
                    yield Slices(writer.bias, 0, rows.index)
            elif layer.parts > 1 and rows.axis > 0 and self._weights[name].shape[0] == layer.parts:
                yield Slices(name, rows.axis - 1, rows.index, part=layer.part)
            elif not self._is_bias(name):
                yield Slices(name, rows.axis, rows.index)

    def _is_bias(self, name: str) -> bool:
        """Return whether a parameter is the bias of a layer, which is cut as the layer's rows are.

        Of its rows some may have no gradient: softmax does not see what is added to all keys alike.
        """
        return name in self._biases

    def _of_expert(self, name: str, layer: PrunableLayer) -> str:
        """Return the counterpart of a parameter in the expert of `layer`, where experts are modules."""
        if layer.pool is None or ".*." not in layer.pool:
            return name
        holder = layer.pool.partition(".*.")[0]
        if not name.startswith(f"{holder}."):
            return name
        expert = layer.name.removeprefix(f"{holder}.").partition(".")[0]
        return f"{holder}.{expert}.{name.removeprefix(f'{holder}.').partition('.')[2]}"
