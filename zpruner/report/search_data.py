"""What a search's report is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from zpruner.artifacts.results import FoundFormula
from zpruner.errors import ArtifactError
from zpruner.report import format as fmt
from zpruner.search import SearchLog, parse_formula, read_finished_log
from zpruner.search.log import Evaluation

COMMAND = "dvc repro search/dvc.yaml"
_NAMES = {"magnitude": "Magnitude", "wanda": "Wanda", "ria": "RIA", "pruner_zero": "Pruner-Zero"}


@dataclass(frozen=True)
class Found:
    """A formula among the best: its evaluation, its size in nodes and its correlations with known methods."""

    evaluation: Evaluation
    size: int
    correlations: dict[str, float]
    is_winner: bool


@dataclass(frozen=True)
class SearchData:
    """What a search's report shows; `known` is method -> fitness, the best first."""

    log: SearchLog
    result: FoundFormula
    known: dict[str, float]
    found: tuple[Found, ...]

    @property
    def formulas(self) -> int:
        """How many formulas were measured."""
        return sum(e.rung == 0 for e in self.log.evaluations)


def load_search(folder: Path) -> SearchData:
    """Read log.jsonl and found.json.

    Raises:
        ArtifactError: a file is missing or damaged.
        FormulaError: a formula that cannot be read.
    """
    log = read_finished_log(folder / "log.jsonl")
    path = folder / "found.json"
    result = FoundFormula.read(path, COMMAND)
    by_formula = {e.formula: e for e in log.evaluations if e.rung == max(x.rung for x in log.evaluations)}
    found = []
    for entry in result.correlations:
        if entry.formula not in by_formula:
            raise ArtifactError(
                str(path), repr(entry.formula), "a formula of the log's highest rung", f"Run `{COMMAND}`."
            )
        size, is_winner = parse_formula(entry.formula).size, entry.formula == result.formula
        found.append(Found(by_formula[entry.formula], size, entry.correlations, is_winner))
    known = {name: value for name, value in result.known.items() if value is not None}
    return SearchData(log, result, dict(sorted(known.items(), key=lambda item: item[1])), tuple(found))


def name_of(method: str) -> str:
    """Return how a known method is called on the page."""
    return _NAMES.get(method, method)


def perplexity_of(fitness: float) -> str:
    """Return a fitness as the perplexity that it is the logarithm of."""
    return fmt.perplexity(math.exp(min(fitness, 700.0)))
