"""A formula as a method, e.g. `mul(W, sqrt(X))` (the language of Pruner-Zero, arXiv 2406.02924)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from zpruner.errors import NonFiniteError
from zpruner.formula import STATISTIC, formula_score, parse_formula
from zpruner.methods._base import PruningMethod
from zpruner.types import ComparisonGroup, LayerStats, Stat


class Expression(PruningMethod):
    """Scores by a formula over W, X and G, written as text or as a published JSON tree.

    W is `abs(weight)`, X the squared input norm per window (`sqrt(X)` is Wanda's factor), G 100 times the L2 norm
    of the gradient over windows. Operators: sqr neg abs log exp sqrt tanh pow skp mms zsn, add sub mul div.
    Magnitude is `W` and Wanda `mul(W, sqrt(X))`; RIA cannot be written, as there are no sums over a row or column.

    Raises:
        FormulaError: on construction, for a formula that cannot be read; it points at the character.
    """

    default_group: ClassVar[ComparisonGroup] = ComparisonGroup.ROW

    formula: str | dict[str, Any] = Field(description="text, or the JSON tree; kept as text")

    @field_validator("formula")
    @classmethod
    def _as_text(cls, value: str | dict[str, Any]) -> str:
        return str(parse_formula(value))

    def required(self) -> frozenset[Stat]:
        """Return the statistics of the terminals that the formula mentions."""
        return frozenset(STATISTIC[t] for t in parse_formula(self.formula).terminals() if t in STATISTIC)

    def score(self, weight: Tensor, stats: LayerStats) -> Tensor:
        """Return the formula's value: float32 (out, in).

        Raises:
            NonFiniteError: the formula overflows or divides by zero on this layer.
            MissingStatisticError: a statistic that the formula mentions was not collected.
        """
        scores = formula_score(parse_formula(self.formula), weight, stats)
        if not bool(torch.isfinite(scores).all()):
            raise NonFiniteError(
                f"layer {stats.layer}, formula {self.formula}",
                f"{int((~torch.isfinite(scores)).sum())} scores that are NaN or infinite",
                "finite scores",
                "Look for exp of a value above 88 or div by an all-zero operand; mms or tanh keep a value small.",
            )
        return scores
