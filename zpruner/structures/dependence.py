"""Which rows of which parameters make the channels that a layer reads, found by following gradients back.

Channels are taken in groups of neighbours. Every group has a number; for each of its bits, one pass back from all
channels whose group has that bit, and one from the others, say which rows reach them. A row that one group alone reads
answers to exactly one pass of each pair, which spells the group's number. So it takes 2 log2(groups) passes, however
wide the layer is, and whatever the order of rows: fused, interleaved or shared by several heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.model.layers import PrunableLayer
from zpruner.structures.probe import Probe

_ROUNDING = 1e-7
"""Of the largest gradient: what is added to all keys alike has none, but for rounding."""


@dataclass(frozen=True)
class Rows:
    """The places on one axis of a parameter that single groups of channels are made by.

    Attributes:
        tensor: the parameter.
        axis: of the logical weight where a layer holds the parameter (0: its outputs), else of the parameter.
        index: int64 (groups, width), ascending in each group.
    """

    tensor: str
    axis: int
    index: Tensor


@dataclass(frozen=True)
class Reader:
    """What one layer of a block reads, as it was computed from scaled parameters.

    Attributes:
        tensor: the parameter that reads, and the index of the matrix in it.
        part: see `tensor`.
        channels: (tokens, in), with the graph of its computation.
    """

    tensor: str
    part: int
    channels: Tensor


class Followed:
    """One block run on random weights of which every row can be followed.

    Args:
        probe: of the model.
        weights: of the probe.
        layers: the prunable layers of the model.
        block: index of the block.
    """

    def __init__(
        self, probe: Probe, weights: Mapping[str, Tensor], layers: Iterable[PrunableLayer], block: int
    ) -> None:
        self._layers = {layer.tensor: layer for layer in layers if layer.block == block}
        self._scales: dict[tuple[str, int], Tensor] = {}
        self._probe, self._weights, self._block = probe, weights, block
        self._biases = {layer.bias for layer in self._layers.values() if layer.parts == 1}
        """Are part of what layers put out, which is scaled."""
        self.readers, self.hidden = self._run()
        """What layers of the block read, and the width of the hidden state that it puts out."""

    def is_layer(self, tensor: str) -> bool:
        """Return whether a parameter is the weight of one of the block's layers."""
        return tensor in self._layers

    def is_linear(self, reader: Reader, rows: Iterable[Rows]) -> bool:
        """Return whether channels change their sign with the rows that make them."""
        for found in rows:
            self._scales[found.tensor, found.axis].data[found.index.flatten()] = -1.0
        turned = next(other for other in self._run()[0] if other.tensor == reader.tensor)
        for found in rows:
            self._scales[found.tensor, found.axis].data[found.index.flatten()] = 1.0
        same = turned.channels.shape == reader.channels.shape
        return same and torch.allclose(turned.channels, -reader.channels, rtol=1e-4, atol=1e-5)

    def _run(self) -> tuple[tuple[Reader, ...], int]:
        """Run the block; return what its layers read, and the width of what it puts out."""
        scaled = dict(self._weights)
        for name, tensor in self._weights.items():
            left = self._probe.block_of(name) != self._block or name in self._layers or name in self._biases
            if not left and tensor.is_floating_point():
                scaled[name] = self._scaled(name, tensor)
        found: dict[str, Reader] = {}

        def observe(name: str, part: int, inputs: Tensor) -> None:
            if name in self._layers and name not in found and inputs.requires_grad:
                found[name] = Reader(name, part, inputs.reshape(-1, inputs.shape[-1]))

        with torch.enable_grad():
            hidden = self._probe.run(scaled, self._block, observe, self._scale)
        return tuple(found.values()), hidden.shape[-1]

    def _scale(self, name: str) -> Tensor:
        """Return ones by which the outputs of a layer are multiplied: no gradient of a weight is taken then."""
        layer = self._layers.get(name)
        return torch.ones(()) if layer is None else self._new((name, 0), layer.out_features)

    def rows(self, reader: Reader, groups: int) -> tuple[Rows, ...]:
        """Return the rows that make one group of a reader's channels each, where all groups have equally many.

        None of a layer's rows: then nothing is returned.

        Args:
            reader: one of `readers`.
            groups: into how many the channels are taken, in order; divides their number.
        """
        width = reader.channels.shape[1]
        return self.rows_of(reader, torch.arange(width) // (width // groups), groups)

    def rows_of(self, reader: Reader, group: Tensor, groups: int) -> tuple[Rows, ...]:
        """Return the same of any groups.

        Args:
            reader: one of `readers`.
            group: int64 (channels,), the number of each channel's group.
            groups: how many there are.
        """
        names = list(self._scales)
        scales = [self._scales[name] for name in names]
        weight = torch.rand(reader.channels.shape, generator=torch.Generator().manual_seed(0)) + 0.5
        found = [torch.zeros(len(scale), dtype=torch.long) for scale in scales]
        single = [torch.ones(len(scale), dtype=torch.bool) for scale in scales]
        for bit in range(max(1, (groups - 1).bit_length())):
            chosen = (group >> bit & 1).bool()
            reached = [self._reached(reader.channels * weight * side, scales) for side in (~chosen, chosen)]
            for index, (low, high) in enumerate(zip(*reached, strict=True)):
                single[index] &= low ^ high
                found[index] |= high.long() << bit
            if not any(s.any() for s, (name, _) in zip(single, names, strict=True) if name in self._layers):
                return ()
        rows = []
        for (name, axis), group_of, alone in zip(names, found, single, strict=True):
            counts = torch.bincount(group_of[alone], minlength=groups)
            if counts[0] > 0 and len(counts) == groups and bool((counts == counts[0]).all()):
                places = alone.nonzero().flatten()
                order = torch.argsort(group_of[places], stable=True)
                rows.append(Rows(name, axis, places[order].view(groups, -1)))
        return tuple(rows) if any(r.tensor in self._layers for r in rows) else ()

    def _scaled(self, name: str, tensor: Tensor) -> Tensor:
        """Return a parameter times ones along its axes, with regard to which gradients are taken."""
        for axis, size in enumerate(tensor.shape):
            shape = [size if a == axis else 1 for a in range(tensor.ndim)]
            tensor = tensor * self._new((name, axis), size).view(shape)
        return tensor

    def _new(self, key: tuple[str, int], size: int) -> Tensor:
        return self._scales.setdefault(key, torch.ones(size, requires_grad=True))

    @staticmethod
    def _reached(channels: Tensor, scales: list[Tensor]) -> list[Tensor]:
        """Return which entries of the scales have a gradient of the channels' sum that is more than rounding."""
        grads = torch.autograd.grad(channels.sum(), scales, retain_graph=True, materialize_grads=True)
        least = _ROUNDING * max(float(grad.abs().max()) for grad in grads)
        return [grad.abs() > least for grad in grads]
