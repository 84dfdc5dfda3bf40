"""Search: pruning formulas by genetic programming, with the perplexity of the pruned model as their fitness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

import zpruner
from stages._deciding import KNOWN
from stages._project import Project, Root, main, say
from zpruner.artifacts.files import atomic_file, digest_of, read_sealed_json, write_json, write_sealed_json
from zpruner.artifacts.results import FoundFormula, Likeness
from zpruner.artifacts.store import ArtifactReader, Provenance
from zpruner.calibration import Gradients
from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.execution import load_whole
from zpruner.methods import METHODS, PruningMethod
from zpruner.model import resolve_devices
from zpruner.runtime.progress import counter
from zpruner.search import (
    Evaluation,
    Fitness,
    SearchResult,
    best_formulas,
    evolve,
    parse_formula,
    read_log,
    score_correlations,
)
from zpruner.settings.params import SearchSettings
from zpruner.text import counted_tokens, read_begin
from zpruner.types import LayerStats, SparsityPattern, Stat

SHOWN = 10
"""Formulas whose correlations with known methods are computed."""


def run(root: Root = Path()) -> None:
    """Write data/search: log.jsonl, best.json (a formula tree) and found.json (what the report shows besides).

    Args:
        root: the project folder.
    """
    project = Project.open(root)
    settings = project.params.the_search()
    _check_memory(project)
    for text in settings.initial:
        parse_formula(text)
    inputs = Inputs(project)
    context = inputs.context(settings)
    folder = project.search_logs / digest_of([settings.identity(), context])
    say(f"search: the log grows in {folder}; an interrupted search continues there")
    fitness = inputs.fitness(settings)
    result = _evolve(settings, fitness, folder / "log.jsonl", context)
    known = _measure_known(fitness, inputs, settings, folder / "known.json")
    best = best_formulas(result.evaluations, SHOWN)
    formulas = [parse_formula(e.formula) for e in best]
    methods = inputs.methods()
    correlations = score_correlations(formulas, methods, inputs.middle_block(formulas))
    found = FoundFormula(
        formula=str(result.best),
        fitness=result.fitness,
        evaluations=len(result.evaluations),
        stopped=result.stopped,
        known=known,
        correlations=tuple(
            Likeness(formula=e.formula, fitness=e.fitness, correlations=alike)
            for e, alike in zip(best, correlations, strict=True)
            if e.fitness is not None
        ),
        settings=settings.model_dump(mode="json"),
        model=inputs.dense.model,
    )
    with atomic_file(project.search / "log.jsonl") as file:
        file.write((folder / "log.jsonl").read_bytes())
    write_json(project.search / "best.json", result.best.to_json())
    found.write(project.search / "found.json")
    seconds = sum(e.seconds for e in result.evaluations)
    project.write_cost("search", seconds=seconds, layers=0, evaluations=len(result.evaluations))
    say(_words(result, known))


class Inputs:
    """The artifacts that a search reads."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.dense = project.open_dense()
        self.activations = project.open_activations(self.dense)
        collected = project.search / "gradients"
        measured = Provenance(
            model_hash=self.dense.model_hash, calibration_hash=self.activations.provenance.calibration_hash
        )
        self.gradients = Gradients(collected, measured) if ArtifactReader(collected, "gradients").files else None
        self.windows, self.text_hash = project.open_windows("search", self.dense)

    def context(self, settings: SearchSettings) -> str:
        """Return what fitness depends on besides the formula, in words that an error can show."""
        sparsities = ", ".join(str(pattern) for pattern in _patterns(settings))
        gradients = "none" if self.gradients is None else self.gradients.reader.digest
        code = self.project.planned("search").code
        return (
            f"model {self.dense.model_hash}; activations {self.activations.reader.digest}; gradients {gradients}; "
            f"text {self.text_hash}; sparsities {sparsities} by {settings.group.value}; code {code}"
        )

    def stats(self, layer: str) -> LayerStats:
        """Return what formulas and methods read of a layer."""
        found = self.activations.stats(layer)
        named = next(known for known in self.activations.layers if known.name == layer)
        grad_sq = None if self.gradients is None else self.gradients.grad_sq(named)
        return replace(found, gram=None, grad_sq=grad_sq)

    def fitness(self, settings: SearchSettings) -> Fitness:
        """Load the model, once on every device, and return what measures formulas."""
        params = self.project.params
        models = [
            load_whole(self.dense, device, trust_remote_code=params.model.trust_remote_code)
            for device in resolve_devices(params.machine.device)
        ]
        count, seqlen = self.windows.shape
        say(f"search: on {', '.join(str(model.device) for model in models)}, {count} windows of {seqlen} tokens")
        patterns = _patterns(settings)
        counted = counted_tokens(seqlen, None, len(read_begin(self.project.tokens("search"))))
        size, inventory = settings.text.batch_size, self.activations.inventory
        return Fitness(models, inventory, self.stats, self.windows, patterns, settings.group, size, counted)

    def methods(self) -> dict[str, PruningMethod]:
        """Return the known methods whose statistics are there."""
        methods = {name: METHODS.find(name)() for name in KNOWN}
        known = {name: found for name, found in methods.items() if isinstance(found, PruningMethod)}
        return {name: m for name, m in known.items() if self.gradients or Stat.GRAD_SQ not in m.required()}

    def middle_block(self, formulas: list[zpruner.search.Tree]) -> Iterator[tuple[Tensor, LayerStats]]:
        """Yield weight and statistics of every layer of the middle block."""
        for layer in self.activations.layers if formulas else ():
            if layer.block == self.activations.inventory.n_blocks // 2:
                yield self.dense.read_weight(layer), self.stats(layer.name)


def _patterns(settings: SearchSettings) -> list[SparsityPattern]:
    return [SparsityPattern.parse(value) for value in settings.sparsities]


def _check_memory(project: Project) -> None:
    if project.params.machine.streaming == "always":
        raise InvalidSettingError(
            "machine.streaming",
            "'always' with a search",
            "'auto' or 'never': a search masks the whole model in memory",
            "Change it in params.yaml.",
        )


def _evolve(settings: SearchSettings, fitness: Fitness, log: Path, context: str) -> SearchResult:
    top = len(settings.rungs) - 1
    earlier = read_log(log).evaluations if log.exists() else ()
    best = min((e.fitness for e in earlier if e.rung == top and e.fitness is not None), default=math.inf)
    if earlier:
        say(f"search: going on after {len(earlier)} evaluations")

    def tell(step: Callable[[], None]) -> Callable[[Evaluation], None]:
        def note(e: Evaluation) -> None:
            nonlocal best
            step()
            if e.rung == top and e.fitness is not None and e.fitness < best:
                best = e.fitness
                say(f"search: evaluation {e.index}, fitness {e.fitness:.4f}: {e.formula}")

        return note

    with counter("search", settings.max_evaluations or 0, "formula") as step:
        return evolve(settings, fitness, log, context=context, progress=tell(step))


def _measure_known(fitness: Fitness, inputs: Inputs, settings: SearchSettings, path: Path) -> dict[str, float | None]:
    """Return the fitness of known methods on all windows; what an interrupted run measured is read from `path`."""
    try:
        known: dict[str, float | None] = read_sealed_json(path, "the fitness of known methods")
    except ArtifactError:  # none, or damaged: it is measured again
        known = {}
    for name, method in inputs.methods().items():
        if name not in known:
            measured = fitness.of_method(method, settings.rungs[-1]).fitness
            known[name] = measured if math.isfinite(measured) else None
            write_sealed_json(path, known)
    return known


def _words(result: SearchResult, known: dict[str, float | None]) -> str:
    others = ", ".join(f"{name} {value:.4f}" for name, value in known.items() if value is not None)
    best = f"{result.best} with fitness {result.fitness:.4f}"
    return (
        f"search: {len(result.evaluations)} evaluations, ended by {result.stopped}; best {best} (known: {others})\n"
        f'to use it: {{score: expression, settings: {{formula: "{result.best}"}}}}'
    )


if __name__ == "__main__":
    main(run)
