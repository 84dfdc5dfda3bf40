"""Allocations of the sparsity over the layers: one file per allocation, found by its name."""

from zpruner.allocations._base import Allocation, Unpruned
from zpruner.parts.registry import Registry

ALLOCATIONS: Registry[Allocation] = Registry("zpruner.allocations", Allocation, "allocation")  # type: ignore[type-abstract]

__all__ = ["ALLOCATIONS", "Allocation", "Unpruned"]
