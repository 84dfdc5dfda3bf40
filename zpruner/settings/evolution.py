"""The settings of a formula search's evolution: part of params.yaml's `search`, and usable alone."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

BUDGETS = frozenset({"generations", "max_evaluations", "max_seconds"})
"""Settings that say only how long to continue: a search may be resumed with others."""


class EvolutionSettings(BaseModel):
    """How formulas are drawn, varied, selected and measured (genetic programming as in arXiv 2406.02924).

    The share of a generation that neither crossover nor mutation makes is drawn anew; with both at 0 the search is
    random search. Depth counts levels of operators.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    population: int = Field(default=40, ge=2)
    generations: int = Field(default=20, ge=1)
    tournament: int = Field(default=4, ge=1, description="formulas drawn per parent; the best of them is taken")
    crossover: float = Field(default=0.5, ge=0, le=1)
    mutation: float = Field(default=0.35, ge=0, le=1)
    elite: int = Field(default=4, ge=0, description="best formulas that stay, without another evaluation")
    initial_depth: tuple[int, int] = Field(default=(2, 4), description="least and greatest depth of random formulas")
    max_depth: int = Field(default=6, ge=1, le=32)
    size_penalty: float = Field(default=0.002, ge=0, description="added to the fitness per node, in selection only")
    terminals: tuple[Literal["W", "X", "G"], ...] = Field(default=("W", "X", "G"), min_length=1)
    initial: tuple[str, ...] = Field(default=(), description="formulas put into the first generation")
    seed: int = Field(default=0, ge=0)
    rungs: tuple[int, ...] = Field(default=(4, 16), min_length=1, description="windows per stage of evaluation")
    promote: float = Field(default=0.34, gt=0, le=1, description="best share, of all so far, that gets the next rung")
    max_evaluations: int | None = Field(default=None, ge=1, description="each rung of each formula counts as one")
    max_seconds: float | None = Field(default=None, gt=0, description="time spent evaluating, all runs together")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crossover + self.mutation > 1:
            raise ValueError("crossover and mutation together may be at most 1: each makes a share of a generation")
        if self.elite >= self.population:
            raise ValueError("elite must be smaller than population, else no new formula is tried")
        if not 0 <= self.initial_depth[0] <= self.initial_depth[1] <= self.max_depth:
            raise ValueError("initial_depth must be [least, greatest] with 0 <= least <= greatest <= max_depth")
        if list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 1:
            raise ValueError("rungs must be positive and strictly increasing numbers of windows")
        return self

    def identity(self) -> dict[str, object]:
        """Return the settings that decide which formulas are tried in which order: all but the budgets."""
        return self.model_dump(mode="json", include=set(EvolutionSettings.model_fields) - BUDGETS)
