"""Pruning methods, scores and solvers: one file per method, found by its name."""

from zpruner.methods._base import MaskSolver, Method, PruningMethod, Solution
from zpruner.parts.registry import Registry

METHODS: Registry[Method] = Registry("zpruner.methods", Method, "pruning method")

__all__ = ["METHODS", "MaskSolver", "Method", "PruningMethod", "Solution"]
