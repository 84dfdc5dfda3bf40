"""Corrections for earlier pruned blocks: one file per correction, found by its name."""

from zpruner.corrections._base import Corrected, Correction
from zpruner.parts.registry import Registry

CORRECTIONS: Registry[Correction] = Registry("zpruner.corrections", Correction, "correction")  # type: ignore[type-abstract]

__all__ = ["CORRECTIONS", "Corrected", "Correction"]
