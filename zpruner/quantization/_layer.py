"""The quantised weights of one layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zpruner.errors import NonFiniteError, ShapeMismatchError
from zpruner.quantization._grid import Grid, nearest_integers
from zpruner.quantization._groups import group_counts, per_weight
from zpruner.types import all_finite


@dataclass(frozen=True)
class QuantizedLayer:
    """Integers and scales of one layer, (out, in) as masks are: also of a layer that is stored transposed.

    Attributes:
        layer: its name.
        grid: which integers there are, and which weights share a scale.
        integers: int8 (out, in), in [grid.low, grid.high], 0 where pruned.
        scales: `grid.scale_dtype` (out, groups), finite; groups are those of the row that has most, and a row's
            unused ones are 0.
        keep: bool (out, in), True = kept.

    Raises:
        ShapeMismatchError: tensors that do not belong together, or integers off the grid; names the layer.
        NonFiniteError: a scale that is not finite.
    """

    layer: str
    grid: Grid
    integers: Tensor
    scales: Tensor
    keep: Tensor

    def __post_init__(self) -> None:
        rows, width = self.integers.shape
        counts = group_counts(self.keep, self.grid)
        groups = int(counts.max()) if rows else 0
        expected = {
            "integers": (torch.int8, (rows, width)),
            "scales": (self.grid.scale_dtype, (rows, groups)),
            "keep": (torch.bool, (rows, width)),
        }
        for name, (dtype, shape) in expected.items():
            found: Tensor = getattr(self, name)
            if found.dtype != dtype or tuple(found.shape) != shape:
                raise self._mismatch(f"{name}: {found.dtype} of shape {tuple(found.shape)}", f"{dtype} of {shape}")
        if self.integers.numel():
            low, high = (int(extreme) for extreme in torch.aminmax(self.integers))
            if low < self.grid.low or high > self.grid.high:
                raise self._mismatch(f"integers from {low} to {high}", f"{self.grid.low} to {self.grid.high}")
        if bool(self.integers.masked_fill(self.keep, 0).any()):
            raise self._mismatch("integers other than 0 where pruned", "0")
        if bool(self.scales.masked_fill(self._used(counts), 0).any()):
            raise self._mismatch("scales other than 0 beyond a row's last group", "0")
        if self.scales.numel() and not all_finite(self.scales):
            raise NonFiniteError(
                f"scales of layer {self.layer}", "NaN or infinity", "finite scales", "Quantise the layer again."
            )

    @classmethod
    def nearest(cls, layer: str, weight: Tensor, scales: Tensor, keep: Tensor, grid: Grid) -> QuantizedLayer:
        """Return the layer whose integers lie nearest to a weight, float32 (out, in); the rest as the attributes."""
        integers = nearest_integers(weight, per_weight(scales, keep, grid), grid).to(torch.int8)
        return cls(layer, grid, integers, scales, keep)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weights, (out, in): the float32 product of integer and scale, rounded once; never -0.0.

        Raises:
            NonFiniteError: a product beyond the largest number of `dtype`.
        """
        product = per_weight(self.scales, self.keep, self.grid).mul_(self.integers)
        weight = product.to(dtype).add_(0.0)  # turns -0.0 into 0.0
        if weight.numel() and not all_finite(weight):
            raise NonFiniteError(
                f"quantised weights of layer {self.layer}",
                f"a number beyond the largest of {dtype}",
                "finite weights",
                "Set model.dtype: bfloat16 in params.yaml.",
            )
        return weight

    def compact(self) -> QuantizedLayer:
        """Return it without the rows and columns of which nothing is kept, as a smaller checkpoint has it."""
        rows, columns = self.keep.any(1), self.keep.any(0)
        integers, keep = (matrix[rows][:, columns] for matrix in (self.integers, self.keep))
        return QuantizedLayer(self.layer, self.grid, integers, self.scales[rows], keep)

    def _used(self, counts: Tensor) -> Tensor:
        return torch.arange(self.scales.shape[1], device=counts.device) < counts.unsqueeze(1)

    def _mismatch(self, got: str, expected: str) -> ShapeMismatchError:
        return ShapeMismatchError(f"quantised layer {self.layer}", got, expected, "Quantise the layer again.")
