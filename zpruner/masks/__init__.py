"""Masks: exact selection from scores, and refinements (one file each, found by its name)."""

from zpruner.masks._arrange import arrange_columns, kept_sum
from zpruner.masks._base import MaskRefinement
from zpruner.masks._select import pruned_count, select, select_each
from zpruner.parts.registry import Registry

REFINEMENTS: Registry[MaskRefinement] = Registry("zpruner.masks", MaskRefinement, "mask refinement")  # type: ignore[type-abstract]

__all__ = [
    "REFINEMENTS",
    "MaskRefinement",
    "arrange_columns",
    "kept_sum",
    "pruned_count",
    "select",
    "select_each",
]
