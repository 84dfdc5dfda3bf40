"""Weight updates for a fixed mask: one file per update, found by its name."""

from zpruner.parts.registry import Registry
from zpruner.updates._base import WeightUpdate

UPDATES: Registry[WeightUpdate] = Registry("zpruner.updates", WeightUpdate, "weight update")  # type: ignore[type-abstract]

__all__ = ["UPDATES", "WeightUpdate"]
