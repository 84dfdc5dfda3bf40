"""A first look at a formula, before any model: formulas that rank nothing are not worth an evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.formula import Tree, evaluate_formula


class Probe:
    """A small random layer of realistic scales: weights near 0.03, squared input norms near 300, gradients near 1."""

    def __init__(self, out: int = 12, width: int = 16, seed: int = 0) -> None:
        g = torch.Generator().manual_seed(seed)
        self.operands: dict[str, Tensor] = {
            "W": torch.randn(out, width, generator=g).abs() * 0.03,
            "X": (torch.randn(width, generator=g) + 5.7).exp(),
            "G": (torch.randn(out, width, generator=g)).exp(),
        }
        self._shape = (out, width)

    def values(self, tree: Tree) -> Tensor:
        """Return the formula's scores of the layer: float32 (out, in), perhaps not finite."""
        return evaluate_formula(tree, self.operands).expand(self._shape)

    def is_viable(self, tree: Tree) -> bool:
        """Return whether the scores are finite and, within every row, not all equal."""
        scores = self.values(tree)
        return bool(scores.isfinite().all()) and bool((scores.amax(dim=1) > scores.amin(dim=1)).all())
