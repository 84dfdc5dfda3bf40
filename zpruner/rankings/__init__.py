"""Rankings of structures that are removed whole: one file per ranking, found by its name."""

from zpruner.parts.registry import Registry
from zpruner.rankings._base import Columns, Ranking, Structures, keep_highest

RANKINGS: Registry[Ranking] = Registry("zpruner.rankings", Ranking, "ranking of structures")  # type: ignore[type-abstract]

__all__ = ["RANKINGS", "Columns", "Ranking", "Structures", "keep_highest"]
