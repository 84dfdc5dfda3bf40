"""Masks of layers as masks of the tensors that a checkpoint stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from zpruner.checkpoint import Checkpoint
from zpruner.checkpoint.conversion import Converted
from zpruner.model import PrunableLayer


class StoredMasks:
    """What `pack` asks for: the mask of a stored tensor, whatever its layers are called and however they are stored.

    Args:
        checkpoint: that is packed.
        layers: its prunable layers.
        read: returns a layer's mask, bool (out, in), True = kept.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Iterable[PrunableLayer], read: Callable[[PrunableLayer], Tensor]
    ) -> None:
        self._checkpoint, self._read = checkpoint, read
        self._layers: dict[Converted, list[PrunableLayer]] = {}
        self._entry_of: dict[str, Converted] = {}
        for layer in layers:
            entry = checkpoint.entry(layer.tensor)
            self._layers.setdefault(entry, []).append(layer)
            self._entry_of |= dict.fromkeys(entry.stored, entry)
        self._last: tuple[Converted, dict[str, Tensor]] | None = None

    def __call__(self, name: str, tensor: Tensor) -> Tensor | None:
        """Return the mask of the stored tensor `name`; None for one that no method prunes."""
        entry = self._entry_of.get(name)
        if entry is None:
            return None
        if self._last is None or self._last[0] != entry:  # what is converted together is packed together
            self._last = (entry, self._masks(entry, tensor))
        return self._last[1][name]

    def _masks(self, entry: Converted, tensor: Tensor) -> dict[str, Tensor]:
        if entry in self._checkpoint.converted:
            parameters = self._checkpoint.read_parameters(entry)
        else:
            parameters = {entry.parameters[0]: tensor}
        masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in parameters.items()}
        for layer in self._layers[entry]:
            layer.view(masks[layer.tensor]).copy_(self._read(layer))
        return self._checkpoint.conversion.to_stored(masks) if entry in self._checkpoint.converted else masks
