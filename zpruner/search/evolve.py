"""The search for pruning formulas by genetic programming (Pruner-Zero, arXiv 2406.02924)."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from time import perf_counter

from zpruner.errors import ArtifactError, ZprunerError
from zpruner.formula import Tree, parse_formula
from zpruner.search.canonical import canonical, simplify
from zpruner.search.log import Evaluation, LogWriter, Measurement
from zpruner.search.probe import Probe
from zpruner.search.variation import crossover, mutate, random_tree
from zpruner.settings.evolution import EvolutionSettings

Evaluate = Callable[[Sequence[Tree], int], Iterable[Measurement]]
"""Called with formulas and a number of windows; gives one measurement per formula in their order: smaller fitness =
better, NaN or infinity for a formula to reject. A generator lets each be logged as it is done. The fitness of a formula
may depend on nothing but the formula and the number of windows: not on the others of the call."""
_ATTEMPTS = 50


class SearchError(ZprunerError):
    """A search that ended without a formula of finite fitness."""


@dataclass(frozen=True)
class SearchResult:
    """The best formula by penalised fitness among those measured at the highest rung reached."""

    best: Tree
    fitness: float
    evaluations: tuple[Evaluation, ...]
    stopped: str
    """generations, evaluations, seconds, or exhausted: no further formula could be found."""


@dataclass(frozen=True)
class _Candidate:
    tree: Tree
    key: str
    operator: str
    parents: tuple[str, ...]


@dataclass(frozen=True)
class _Standing:
    """Orders candidates: whoever reached a higher rung first, then by penalised fitness."""

    missed_rungs: int
    penalised: float
    index: int
    tree: Tree
    fitness: float

    def __lt__(self, other: _Standing) -> bool:
        return (self.missed_rungs, self.penalised, self.index) < (other.missed_rungs, other.penalised, other.index)


class _Stop(Exception):  # noqa: N818  a signal, caught in `evolve`
    pass


def evolve(
    settings: EvolutionSettings,
    evaluate: Evaluate,
    log: Path,
    *,
    context: str = "",
    progress: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """Search for the formula of least fitness, going on where `log` ends.

    An interrupted search replays what `log` records and continues: with the same settings it ends with the same log
    (but for seconds) and result as an undisturbed one. Formulas with the same canonical form are evaluated once. A
    formula gets the next rung (more windows) if it is among the best `promote` of all that this rung has seen.

    Args:
        settings: the search.
        evaluate: measures formulas; what it raises ends the search, and the log stays good.
        log: JSONL file of the evaluations.
        context: what the fitness depends on (model, texts, sparsities); a log of another context is refused.
        progress: called after each new evaluation.

    Raises:
        ArtifactError: the log is damaged, or of other settings, context or another version of the library.
        LockedError: another process uses the log.
        FormulaError: one of `settings.initial` cannot be read.
        SearchError: no formula had a finite fitness.
    """
    initial = [parse_formula(text) for text in settings.initial]
    with LogWriter(log, settings.identity(), context) as writer:
        search = _Search(settings, initial, evaluate, writer, progress)
        try:
            search.run()
            reason = "generations"
        except _Stop as stop:
            reason = str(stop)
        writer.stop(reason, len(search.evaluations))
    standings = sorted(search.standings.values())
    if not standings or not math.isfinite(standings[0].penalised):
        raise SearchError(
            f"search of {log}",
            f"no finite fitness in {len(search.evaluations)} evaluations",
            "at least one formula that can be measured",
            "Check the fitness with a known formula such as mul(W, sqrt(X)), or raise the budget.",
        )
    best = standings[0]
    return SearchResult(best.tree, best.fitness, tuple(search.evaluations), reason)


class _Search:
    def __init__(
        self,
        settings: EvolutionSettings,
        initial: list[Tree],
        evaluate: Evaluate,
        writer: LogWriter,
        progress: Callable[[Evaluation], None] | None,
    ) -> None:
        self.initial = initial
        self.settings, self.evaluate, self.writer, self.progress = settings, evaluate, writer, progress
        self.rng = Random(settings.seed)
        self.probe = Probe()
        self.evaluations: list[Evaluation] = []
        self.standings: dict[str, _Standing] = {}
        self.seen: set[str] = set()
        self.at_rung: list[list[float]] = [[] for _ in settings.rungs]
        self.seconds = 0.0

    def run(self) -> None:
        population: list[_Standing] = []
        for generation in range(self.settings.generations):
            elite = sorted(self.standings.values())[: self.settings.elite]
            candidates = self._generation(population, self.settings.population - len(elite))
            if not candidates:
                raise _Stop("exhausted")
            self._measure(candidates, generation)
            population = elite + [self.standings[c.key] for c in candidates]

    def _generation(self, population: list[_Standing], size: int) -> list[_Candidate]:
        """Return up to `size` formulas that are new in canonical form; fewer where new ones are hard to find."""
        initial = [] if population else self.initial
        found = [c for tree in initial[:size] if (c := self._candidate(tree, "initial", ()))]
        while len(found) < size:
            draw = self.rng.random()
            if not population or draw >= self.settings.crossover + self.settings.mutation:
                new = self._novel(self._random)
            else:
                vary = partial(self._crossover if draw < self.settings.crossover else self._mutation, population)
                new = self._novel(vary) or self._novel(self._random)
            if new is None:
                break
            found.append(new)
        return found

    def _novel(self, make: Callable[[], tuple[Tree, str, tuple[str, ...]]]) -> _Candidate | None:
        return next((c for _ in range(_ATTEMPTS) if (c := self._candidate(*make()))), None)

    def _candidate(self, tree: Tree, operator: str, parents: tuple[str, ...]) -> _Candidate | None:
        shorter = simplify(tree)
        tree = shorter if shorter.depth <= self.settings.max_depth else tree
        key = str(canonical(tree))
        # A formula that overflows does not bar the equal one that does not: log(exp(X)) is only then not X.
        if tree.depth > self.settings.max_depth or key in self.seen or not self.probe.is_viable(tree):
            return None
        self.seen.add(key)
        return _Candidate(tree, key, operator, parents)

    def _random(self) -> tuple[Tree, str, tuple[str, ...]]:
        depth = self.rng.randint(*self.settings.initial_depth)
        return random_tree(self.rng, depth, self.settings.terminals), "random", ()

    def _crossover(self, population: list[_Standing]) -> tuple[Tree, str, tuple[str, ...]]:
        one, other = self._parent(population), self._parent(population)
        return crossover(self.rng, one, other), "crossover", (str(one), str(other))

    def _mutation(self, population: list[_Standing]) -> tuple[Tree, str, tuple[str, ...]]:
        one = self._parent(population)
        return mutate(self.rng, one, self.settings.terminals), "mutation", (str(one),)

    def _parent(self, population: list[_Standing]) -> Tree:
        return min(self.rng.choice(population) for _ in range(self.settings.tournament)).tree

    def _measure(self, candidates: list[_Candidate], generation: int) -> None:
        """Evaluate on the rungs, each time only those among the best so far of the rung below."""
        for rung in range(len(self.settings.rungs)):
            self._measure_rung(candidates, generation, rung)
            ranking = self.at_rung[rung]
            limit = ranking[math.ceil(self.settings.promote * len(ranking)) - 1] if ranking else math.inf
            candidates = [c for c in candidates if math.isfinite(p := self.standings[c.key].penalised) and p <= limit]

    def _measure_rung(self, candidates: list[_Candidate], generation: int, rung: int) -> None:
        recorded = self.writer.recorded[len(self.evaluations) :][: len(candidates)]
        for candidate, evaluation in zip(candidates, recorded, strict=False):
            self._check_replay(evaluation, candidate, generation, rung)
            self._take(evaluation, candidate)
        new = candidates[len(recorded) :]
        self._check_budget(new)
        if self.settings.max_evaluations is not None:
            new = new[: self.settings.max_evaluations - len(self.evaluations)]
        windows = self.settings.rungs[rung]
        started = perf_counter()
        results = iter(self.evaluate([c.tree for c in new], windows) if new else ())
        for candidate in new:
            measured = next(results, None)
            if measured is None:
                raise ValueError(f"evaluate gave fewer than {len(new)} measurements for {len(new)} formulas")
            now = perf_counter()
            evaluation = Evaluation(
                index=len(self.evaluations),
                generation=generation,
                rung=rung,
                windows=windows,
                formula=str(candidate.tree),
                canonical=candidate.key,
                operator=candidate.operator,
                parents=candidate.parents,
                fitness=float(measured.fitness) if math.isfinite(measured.fitness) else None,
                seconds=round(now - started, 4),
                parts=measured.parts,
            )
            started = now
            self.writer.append(evaluation)
            self._take(evaluation, candidate)
            if self.progress is not None:
                self.progress(evaluation)
            if self.settings.max_seconds is not None and self.seconds >= self.settings.max_seconds:
                raise _Stop("seconds")
        if len(recorded) + len(new) < len(candidates):
            raise _Stop("evaluations")

    def _check_budget(self, new: list[_Candidate]) -> None:
        settings = self.settings
        if not new:
            return
        if settings.max_evaluations is not None and len(self.evaluations) >= settings.max_evaluations:
            raise _Stop("evaluations")
        if settings.max_seconds is not None and self.seconds >= settings.max_seconds:
            raise _Stop("seconds")

    def _take(self, evaluation: Evaluation, candidate: _Candidate) -> None:
        fitness = math.inf if evaluation.fitness is None else evaluation.fitness
        penalised = fitness + self.settings.size_penalty * candidate.tree.size
        rungs = len(self.settings.rungs)
        missed = rungs if evaluation.fitness is None else rungs - 1 - evaluation.rung
        self.evaluations.append(evaluation)
        self.seconds += evaluation.seconds
        insort(self.at_rung[evaluation.rung], penalised)
        self.standings[candidate.key] = _Standing(missed, penalised, evaluation.index, candidate.tree, fitness)

    def _check_replay(self, evaluation: Evaluation, candidate: _Candidate, generation: int, rung: int) -> None:
        ours = (generation, rung, str(candidate.tree), candidate.key)
        theirs = (evaluation.generation, evaluation.rung, evaluation.formula, evaluation.canonical)
        if ours != theirs:
            raise ArtifactError(
                f"search log {self.writer.path}, evaluation {evaluation.index}",
                f"formula {evaluation.formula} (generation {evaluation.generation}, rung {evaluation.rung})",
                f"{candidate.tree} (generation {generation}, rung {rung})",
                "It was written by another version of the library; move it away to start a new search.",
            )
