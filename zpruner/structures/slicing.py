"""Slices taken out of tensors or moved in them, and on which axis of its parameter a logical weight's lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from zpruner.structures.coupling import Coupling, Slices

Cuts = Mapping[str, Sequence[tuple[Slices, Tensor]]]
"""Parameter -> what is cut in it, with which of the structures stay."""


def cuts_of(couplings: Iterable[Coupling], keep: Mapping[str, Tensor]) -> dict[str, list[tuple[Slices, Tensor]]]:
    """Return what is cut in each parameter, given what each coupling keeps: name -> bool (count,)."""
    cuts: dict[str, list[tuple[Slices, Tensor]]] = {}
    for coupling in couplings:
        if (kept := keep.get(coupling.name)) is not None and not bool(kept.all()):
            for slices in (*coupling.writes, *coupling.reads):
                cuts.setdefault(slices.tensor, []).append((slices, kept))
    return cuts


def lies_at(slices: Slices, dimensions: int) -> tuple[int, int]:
    """Return on which axis of its parameter, which has so many, slices lie, and how many of each follow each other."""
    if slices.layer is None:
        return slices.axis + (slices.part is not None), 1
    axis = slices.axis ^ slices.layer.transposed
    if slices.layer.parts == 1 and dimensions == 2:
        return axis, 1
    if dimensions == 2:
        return axis, slices.layer.parts if axis == 0 else 1
    return axis + dimensions - 2, 1


def move_slices(tensor: Tensor, slices: Slices, order: Tensor) -> None:
    """Put structures of a parameter where an order says, in place.

    Args:
        tensor: the parameter.
        slices: where the structures lie in it.
        order: int64 (count,), the old place of each structure.
    """
    before = slices.index[order.to(slices.index.device)].reshape(-1).to(tensor.device)
    after = slices.index.reshape(-1).to(tensor.device)
    view = slices.view(tensor)
    view.index_copy_(slices.axis, after, view.index_select(slices.axis, before))


def cut_tensor(tensor: Tensor, cuts: Sequence[tuple[Slices, Tensor]]) -> Tensor:
    """Return a parameter without what is cut, with memory of its own.

    Of a stack each matrix may lose other places, as many in each.
    """
    parts: dict[int, list[tuple[Slices, Tensor]]] = {}
    whole = []
    for slices, kept in cuts:
        part = _part(slices)
        if part is None:
            whole.append((slices, kept))
        else:
            parts.setdefault(part, []).append((slices, kept))
    if parts:
        layer = next(iter(parts.values()))[0][0].layer
        single = tensor if layer is None or tensor.ndim > 2 else tensor.view(layer.parts, -1, tensor.shape[-1])
        made = torch.stack([_cut(matrix, parts.get(index, ())) for index, matrix in enumerate(single)])
        tensor = made if tensor.ndim > 2 or layer is None else made.view(-1, made.shape[-1])
    return _cut(tensor, whole).clone(memory_format=torch.contiguous_format)


def _part(slices: Slices) -> int | None:
    """Return in which entry of a stack slices lie; None: on the parameter itself."""
    if slices.layer is not None and slices.layer.parts > 1:
        return slices.layer.part
    return slices.part


def _cut(tensor: Tensor, cuts: Iterable[tuple[Slices, Tensor]]) -> Tensor:
    """Return a tensor without the places of structures that go, on every axis."""
    stays: dict[int, Tensor] = {}
    for slices, kept in cuts:
        axis = slices.axis if slices.layer is None else slices.axis ^ slices.layer.transposed
        stay = stays.setdefault(axis, torch.ones(tensor.shape[axis], dtype=torch.bool))
        stay[slices.places(~kept)] = False
    for axis, stay in stays.items():
        tensor = tensor.index_select(axis, stay.nonzero().flatten().to(tensor.device))
    return tensor
