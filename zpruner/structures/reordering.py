"""A model in another order: what moves in its parameters, and in the weights and statistics of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from zpruner.model.layers import PrunableLayer
from zpruner.structures.coupling import Slices
from zpruner.structures.slicing import move_slices
from zpruner.structures.symmetries import Symmetry
from zpruner.types import LayerStats


class Reordering:
    """An order of items for some of a model's symmetries.

    Args:
        symmetries: of the model.
        orders: name of a symmetry -> int64 (count,), the old place of each item; those left out stay as they are.

    Raises:
        ShapeMismatchError: an order that is none, or in which an item leaves its division.
    """

    def __init__(self, symmetries: Iterable[Symmetry] = (), orders: Mapping[str, Tensor] | None = None) -> None:
        self._moves: dict[str, list[tuple[Slices, Tensor]]] = {}
        self._axes: dict[tuple[str, int], Tensor] = {}
        for symmetry in symmetries:
            if (given := (orders or {}).get(symmetry.name)) is not None:
                order = symmetry.checked(given.cpu())
                for slices in symmetry.slices:
                    self._moves.setdefault(slices.tensor, []).append((slices, order))
                    if slices.layer is not None:
                        self._note(slices, order)

    def _note(self, slices: Slices, order: Tensor) -> None:
        """Note the old place of every output or input of a layer."""
        assert slices.layer is not None
        layer = slices.layer
        length = layer.in_features if slices.axis else layer.out_features
        places = self._axes.get((layer.name, slices.axis), torch.arange(length))
        before = slices.index[order].reshape(-1)
        self._axes[layer.name, slices.axis] = places.index_copy(0, slices.index.reshape(-1), places[before])

    @property
    def moves(self) -> dict[str, Callable[[Tensor], None]]:
        """Parameter in which something moves -> what moves it, in place."""
        return {name: partial(self._move, name) for name in self._moves}

    def move(self, names: Iterable[str], find: Callable[[str], Tensor]) -> None:
        """Move what moves in some parameters, in place, each tensor once, however many names it has.

        Args:
            names: of parameters.
            find: gives a parameter by its name.
        """
        moved: set[int] = set()
        for name in names:
            if (move := self.moves.get(name)) is not None and id(tensor := find(name)) not in moved:
                moved.add(id(tensor))
                move(tensor)

    def _move(self, name: str, parameter: Tensor) -> None:
        with torch.inference_mode(parameter.is_inference()), torch.no_grad():
            for slices, order in self._moves[name]:
                move_slices(parameter.detach(), slices, order)

    def weight(self, layer: PrunableLayer, matrix: Tensor) -> Tensor:
        """Return a layer's weight, scores or gradients, (out, in), in the new order."""
        return self._at(layer, 0, self._at(layer, 1, matrix))

    def outputs(self, layer: PrunableLayer, vector: Tensor) -> Tensor:
        """Return what a layer has one number of per output, such as its bias, (out,), in the new order."""
        places = self._axes.get((layer.name, 0))
        return vector if places is None else vector[places.to(vector.device)]

    def before(self, layer: PrunableLayer, matrix: Tensor) -> Tensor:
        """Return a matrix of the new order, (out, in), in the old one."""
        for axis in (0, 1):
            if (places := self._axes.get((layer.name, axis))) is not None:
                matrix = matrix.index_select(axis, places.argsort().to(matrix.device))
        return matrix

    def stats(self, layer: PrunableLayer, stats: LayerStats) -> LayerStats:
        """Return the statistics of a layer in the new order."""
        rows, columns = (self._axes.get((layer.name, axis)) for axis in (0, 1))
        return stats if rows is None and columns is None else stats.reordered(columns, rows)

    def _at(self, layer: PrunableLayer, axis: int, matrix: Tensor) -> Tensor:
        places = self._axes.get((layer.name, axis))
        return matrix if places is None else matrix.index_select(axis, places.to(matrix.device))
