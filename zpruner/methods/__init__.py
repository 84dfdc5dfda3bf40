"""Pruning methods: one file per method, found by its name."""

from zpruner.methods._base import PruningMethod
from zpruner.registry import Registry

METHODS: Registry[PruningMethod] = Registry("zpruner.methods", PruningMethod, "pruning method")  # type: ignore[type-abstract]

__all__ = ["METHODS", "PruningMethod"]
