"""The last part of a composition: kept weights tuned so that a block puts out what it should; found by name."""

from zpruner.parts.registry import Registry
from zpruner.tuning._base import Goal, KeptWeights, Tuning

TUNINGS: Registry[Tuning] = Registry("zpruner.tuning", Tuning, "tuning")  # type: ignore[type-abstract]

__all__ = ["TUNINGS", "Goal", "KeptWeights", "Tuning"]
