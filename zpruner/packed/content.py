"""What a packed file holds of one stored tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.errors import ArtifactError
from zpruner.kernels.expand import expand_rows
from zpruner.kernels.parts import Codes, Layout, Parts
from zpruner.packed.encode import (
    bitmask_of,
    bits_of,
    codes_of,
    negative_zeros,
    nonzero,
    offsets_of,
    scales_of,
    values_of,
)
from zpruner.packed.layout import PackedTensor
from zpruner.packed.size import Kinds, kinds_of, packed_bytes


@dataclass(frozen=True)
class Integers:
    """What a quantised tensor is made from, all of the tensor's shape.

    Attributes:
        codes: how integers stand for the weights.
        transposed: whether the tensor, or each matrix of a stack, is stored (in, out).
        integers: int8, 0 where pruned.
        scales: float32, the scale of every kept weight.
        scale_dtype: that the scales are stored in.
        keep: bool, True = kept.
    """

    codes: Codes
    transposed: bool
    integers: Tensor
    scales: Tensor
    scale_dtype: torch.dtype
    keep: Tensor


Keep = Callable[[str, Tensor], Tensor | None]
IntegersOf = Callable[[str, Tensor], Integers | None]


@dataclass(frozen=True)
class Known:
    """What is known of a checkpoint's tensors beside their numbers.

    Attributes:
        transposed: names of those whose matrix is stored (in, out).
        keep: given a tensor's name and itself, its mask (bool, of its shape), or None where none is known.
        integers: given the same, what it is made from, or None where it is not quantised.
    """

    transposed: frozenset[str] = frozenset()
    keep: Keep = lambda name, tensor: None
    integers: IntegersOf = lambda name, tensor: None


@dataclass(frozen=True)
class Content:
    """A stored tensor as a packed matrix: `describe` makes it.

    Attributes:
        tensor: what the file says of it.
        weight: (rows, columns).
        keep: bool, of its shape.
        integers, scales: of its shape; None where values are the weights.
        scale_dtype: that the scales are stored in.
    """

    tensor: PackedTensor
    weight: Tensor
    keep: Tensor
    integers: Tensor | None = None
    scales: Tensor | None = None
    scale_dtype: torch.dtype = torch.float32

    @property
    def layout(self) -> Layout:
        """Of the packed matrix."""
        return self.tensor.layout

    def kinds(self) -> Kinds:
        """Return the dtype and shape of every part."""
        return kinds_of(self.layout, self.keep.sum(dim=1), self.scale_dtype)

    def part(self, name: str) -> Tensor:
        """Return one of the parts."""
        if name == "bitmask":
            return bitmask_of(self.keep)
        if name == "offsets":
            return offsets_of(self.layout, self.keep)
        if self.integers is None or self.scales is None:
            return values_of(self.weight, self.keep)
        if name == "values":
            return codes_of(self.layout, self.integers, self.keep)
        return scales_of(self.layout, self.scales, self.keep).to(self.scale_dtype)

    def negative(self) -> Tensor:
        """Return which of the zeros that are left out are -0.0, bool (rows, columns)."""
        return negative_zeros(self.weight) & ~self.keep


def describe(name: str, tensor: Tensor, known: Known) -> Content:
    """Return a stored tensor of two or more dimensions as a packed matrix.

    Kept is what the mask says, and any other number that is not zero. A quantised one is stored as integers.
    """
    found = known.integers(name, tensor)
    if found is not None:
        return _of_integers(name, tensor, found)
    mask = known.keep(name, tensor)
    transposed = name in known.transposed and tensor.ndim == 2
    described = PackedTensor(name, tuple(tensor.shape), transposed, tensor.dtype)
    keep = nonzero(tensor) if mask is None else nonzero(tensor) | mask
    return Content(described, described.matrix(tensor), described.matrix(keep))


def packed_size(content: Content) -> int | None:
    """Return the bytes of all parts; None where the tensor stays as it is."""
    return packed_bytes(content.layout, content.keep.sum(dim=1), content.scale_dtype)


def check_integers(where: str, content: Content) -> None:
    """Raise ArtifactError unless integers times scales are the tensor, bit for bit.

    Args:
        where: names the tensor in the error.
        content: with integers.
    """
    if content.integers is None or content.scales is None:
        return
    layout = content.layout
    parts = Parts(**{part: content.part(part) for part in layout.names})
    if not torch.equal(bits_of(expand_rows(layout, parts, 0, layout.rows)), bits_of(content.weight)):
        raise ArtifactError(where, "integers and scales of other weights", "its own", "Run the stage mask again.")


def _of_integers(name: str, tensor: Tensor, found: Integers) -> Content:
    masked = not bool(found.keep.all())
    described = PackedTensor(name, tuple(tensor.shape), found.transposed, tensor.dtype, masked, found.codes)
    matrix = described.matrix
    return Content(
        described,
        matrix(tensor),
        matrix(found.keep),
        matrix(found.integers),
        matrix(found.scales),
        found.scale_dtype,
    )
