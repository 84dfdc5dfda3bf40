"""What is known of layers, as what is known of the tensors that a checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zpruner.checkpoint import Checkpoint
from zpruner.checkpoint.conversion import Converted
from zpruner.model import PrunableLayer
from zpruner.packed.content import Integers
from zpruner.packed.size import codes_of_grid
from zpruner.quantization import QuantizedLayer, per_weight

Read = Callable[[PrunableLayer], Tensor]


class StoredLayers:
    """Numbers of layers' weights as numbers of stored tensors, whatever these are called and however they are stored.

    Args:
        checkpoint: that stores them.
        layers: its prunable layers.
    """

    def __init__(self, checkpoint: Checkpoint, layers: Iterable[PrunableLayer]) -> None:
        self._checkpoint = checkpoint
        self._layers: dict[Converted, list[PrunableLayer]] = {}
        self._entry_of: dict[str, Converted] = {}
        for layer in layers:
            entry = checkpoint.entry(layer.tensor)
            self._layers.setdefault(entry, []).append(layer)
            self._entry_of |= dict.fromkeys(entry.stored, entry)

    def layers(self, name: str) -> list[PrunableLayer]:
        """Return the layers that the stored tensor `name` is part of; none where no method prunes it."""
        entry = self._entry_of.get(name)
        return [] if entry is None else self._layers[entry]

    def stored(self, name: str, tensor: Tensor, read: Read, fill: Tensor) -> dict[str, Tensor]:
        """Return what `read` gives of the layers that are converted together with `name`, by stored tensor.

        Args:
            name: of a stored tensor that has layers.
            tensor: itself.
            read: returns a matrix (out, in) of numbers of a layer's weights.
            fill: its dtype is theirs, and its number that of weights that are no layer's.
        """
        entry = self._entry_of[name]
        converted = entry in self._checkpoint.converted
        if converted:
            shapes = {key: value.shape for key, value in self._checkpoint.read_parameters(entry).items()}
        else:
            shapes = {entry.parameters[0]: tensor.shape}
        found = {key: fill.expand(shape).clone() for key, shape in shapes.items()}
        for layer in self._layers[entry]:
            layer.view(found[layer.tensor]).copy_(read(layer))
        return self._checkpoint.conversion.to_stored(found) if converted else {name: found[entry.parameters[0]]}


class StoredMasks:
    """What `pack` asks for: the mask of a stored tensor.

    Args:
        layers: of the checkpoint that is packed.
        read: returns a layer's mask, bool (out, in), True = kept.
    """

    def __init__(self, layers: StoredLayers, read: Read) -> None:
        self._layers, self._read = layers, read
        self._last: dict[str, Tensor] = {}

    def __call__(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return the mask of the stored tensor `name`; None for one that no method prunes."""
        if not self._layers.layers(name):
            return None
        if name not in self._last:  # what is converted together is packed together
            self._last = self._layers.stored(name, tensor, self._read, torch.tensor(True))
        return self._last[name]


class StoredIntegers:
    """What `pack` asks for: what a stored tensor is made from, where all layers in it are quantised alike.

    Args:
        layers: of the checkpoint that is packed.
        read: returns a layer's integers and scales; None where it is not quantised.
    """

    def __init__(self, layers: StoredLayers, read: Callable[[PrunableLayer], QuantizedLayer | None]) -> None:
        self._layers, self._read = layers, read
        self._last: dict[str, Integers] = {}

    def __call__(self, name: str, tensor: Tensor) -> Integers | None:
        """Return what the stored tensor `name` is made from; None where that is nothing but its numbers."""
        if name not in self._last:
            layers = self._layers.layers(name)
            quantized = {layer: self._read(layer) for layer in layers}
            grids = {None if found is None else found.grid for found in quantized.values()}
            sides = {layer.transposed for layer in layers}
            grid = grids.pop() if len(grids) == 1 else None
            if grid is None or len(sides) != 1 or not self._covered(name, tensor):
                return None

            def of(layer: PrunableLayer) -> QuantizedLayer:
                found = quantized[layer]
                assert found is not None
                return found

            def scales(layer: PrunableLayer) -> Tensor:
                found = of(layer)
                return per_weight(found.scales, found.keep, found.grid)

            stored = self._layers.stored
            keep = stored(name, tensor, lambda layer: of(layer).keep, torch.tensor(True))
            integers = stored(name, tensor, lambda layer: of(layer).integers, torch.tensor(0, dtype=torch.int8))
            scale = stored(name, tensor, scales, torch.tensor(0.0))
            codes = codes_of_grid(grid)
            side = sides.pop()
            self._last = {
                key: Integers(codes, side, integers[key], scale[key], grid.scale_dtype, keep[key]) for key in keep
            }
        return self._last[name]

    def _covered(self, name: str, tensor: Tensor) -> bool:
        """Whether every number of it, and of what is converted together with it, is a layer's."""
        ones = self._layers.stored(name, tensor, lambda layer: torch.ones(layer.shape), torch.tensor(False))
        return all(bool(found.all()) for found in ones.values())
