"""Quantising what stays: integers and scales of a layer's kept weights, and one file per way of rounding.

A weight is `integer * scale`. Integers of b bits lie in [-2^(b-1), 2^(b-1) - 1] with scales of either sign, those of
8 bits in [-127, 127] with positive scales. A group is `group` consecutive *kept* weights of a row in the order of its
columns, or all kept weights of the row; so the kept values of a row, stored one after another, have one scale for
every `group` of them, and the last group of a row may be shorter. An unpruned layer has the usual groups of columns.

`QuantizedLayer.dequantize` defines the arithmetic: `float32(integer) * float32(scale)`, rounded once (to nearest, ties
to even) to the checkpoint's dtype, and -0.0 written as 0.0. What is stored and what a checkpoint holds agree bit for
bit.
"""

from zpruner.parts.registry import Registry
from zpruner.quantization._base import Rounding
from zpruner.quantization._columns import column_grid
from zpruner.quantization._grid import Grid, nearest_integers
from zpruner.quantization._groups import group_counts, group_of, per_weight
from zpruner.quantization._layer import QuantizedLayer
from zpruner.quantization._running import RunningScales
from zpruner.quantization._scales import choose_scales

ROUNDINGS: Registry[Rounding] = Registry("zpruner.quantization", Rounding, "rounding")  # type: ignore[type-abstract]

__all__ = [
    "ROUNDINGS",
    "Grid",
    "QuantizedLayer",
    "Rounding",
    "RunningScales",
    "choose_scales",
    "column_grid",
    "group_counts",
    "group_of",
    "nearest_integers",
    "per_weight",
]
