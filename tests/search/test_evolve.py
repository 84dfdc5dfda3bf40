import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from zpruner.errors import ArtifactError, LockedError
from zpruner.formula import Tree, evaluate_formula, parse_formula
from zpruner.search import FormulaError, Measurement, SearchError, canonical, evolve, read_finished_log, read_log
from zpruner.search.log import LogWriter
from zpruner.settings.evolution import EvolutionSettings

HIDDEN = "mul(mul(W, sqrt(X)), log(G))"


class MaskDistance:
    """Synthetic fitness: share of weights kept differently from the hidden formula, over `windows` random layers."""

    def __init__(self, hidden: str = HIDDEN) -> None:
        self.calls: list[tuple[str, int]] = []
        g = torch.Generator().manual_seed(7)
        self.layers = [
            {
                "W": torch.randn(24, 32, generator=g).abs(),
                "X": torch.randn(32, generator=g).exp(),
                "G": torch.randn(24, 32, generator=g).exp(),
            }
            for _ in range(4)
        ]
        self.hidden = [self.keep(parse_formula(hidden), layer) for layer in self.layers]

    def keep(self, tree: Tree, layer: dict[str, torch.Tensor]) -> torch.Tensor:
        scores = evaluate_formula(tree, layer).expand(24, 32)
        if not bool(scores.isfinite().all()):
            return torch.full((24, 32), torch.nan)
        return (torch.argsort(torch.argsort(scores, dim=1, stable=True), dim=1) >= 16).float()

    def __call__(self, trees: Sequence[Tree], windows: int) -> Iterator[Measurement]:
        for tree in trees:
            self.calls.append((str(tree), windows))
            wrong = [
                (self.keep(tree, layer) - hidden).abs().mean()
                for layer, hidden in zip(self.layers[:windows], self.hidden, strict=False)
            ]
            yield Measurement(float(torch.stack(wrong).mean()), {"compare": 0.25})


def small(**changes: Any) -> EvolutionSettings:
    values = {"population": 10, "generations": 3, "rungs": (1, 4), "elite": 2, "seed": 3, "size_penalty": 0.001}
    return EvolutionSettings(**{**values, **changes})


def without_seconds(path: Path) -> list[dict[str, Any]]:
    records = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in ("seconds", "parts", "seal")} for record in records]


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is most of the time of these tests; that it is asked to sync is tested on its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_every_evaluation_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    evolve(small(max_evaluations=3), MaskDistance(), tmp_path / "log.jsonl")
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
    assert sizes == [sum(map(len, lines[: n + 1])) for n in range(5)]


def test_finds_the_hidden_formula_and_beats_random_search(tmp_path: Path) -> None:
    budget = {"population": 30, "generations": 100, "max_evaluations": 300, "elite": 3}
    evolved, drawn = [], []
    for seed in (1, 2):
        fitness = MaskDistance("mul(W, add(X, G))")
        for name, rates, results in (("e", {}, evolved), ("r", {"crossover": 0.0, "mutation": 0.0}, drawn)):
            result = evolve(small(**budget, **rates, seed=seed), fitness, tmp_path / f"{name}{seed}.jsonl")
            assert len(result.evaluations) == 300
            results.append(result.fitness)
    assert min(evolved) == 0.0
    assert sum(evolved) < 0.75 * sum(drawn), (evolved, drawn)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "log.jsonl"
    evolve(small(), MaskDistance(), path)
    return path


def test_resumes_exactly_from_every_evaluation(whole: Path, tmp_path: Path) -> None:
    lines = whole.read_bytes().splitlines(keepends=True)
    expected = without_seconds(whole)
    undisturbed = read_log(whole)
    log = tmp_path / "log.jsonl"
    for kept in range(len(lines) + 1):
        # Every second time the process dies while it writes: half a line is left.
        rest = lines[kept][: len(lines[kept]) // 2] if kept % 2 and kept < len(lines) else b""
        log.write_bytes(b"".join(lines[:kept]) + rest)
        fitness = MaskDistance()
        result = evolve(small(), fitness, log)
        assert without_seconds(log) == expected
        assert len(fitness.calls) == len(undisturbed.evaluations) - max(0, min(kept - 1, len(undisturbed.evaluations)))
        assert (result.stopped, len(result.evaluations)) == ("generations", len(undisturbed.evaluations))
        if kept == 0:
            best = (result.best, result.fitness)
        assert (result.best, result.fitness) == best


def test_an_error_in_the_fitness_loses_nothing(whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    fitness = MaskDistance()

    def failing(trees: Sequence[Tree], windows: int) -> Iterator[Measurement]:
        for value in fitness(trees, windows):
            if len(fitness.calls) == 7:
                raise MemoryError
            yield value

    with pytest.raises(MemoryError):
        evolve(small(), failing, log)
    assert len(read_log(log).evaluations) == 6
    assert read_log(log).stopped is None
    evolve(small(), MaskDistance(), log)
    assert without_seconds(log) == without_seconds(whole)


def test_each_canonical_form_is_evaluated_once_per_rung(whole: Path) -> None:
    evaluations = read_log(whole).evaluations
    pairs = [(e.canonical, e.rung) for e in evaluations]
    assert len(set(pairs)) == len(pairs)
    for e in evaluations:
        assert str(canonical(parse_formula(e.formula))) == e.canonical
        assert parse_formula(e.formula).depth <= small().max_depth
        assert e.windows == small().rungs[e.rung]
    assert {e.operator for e in evaluations} == {"random", "crossover", "mutation"}
    assert all(len(e.parents) == {"random": 0, "crossover": 2, "mutation": 1}[e.operator] for e in evaluations)
    assert max(e.generation for e in evaluations) == 2


def test_only_the_best_share_gets_more_windows(whole: Path) -> None:
    evaluations = read_log(whole).evaluations
    first = [e for e in evaluations if e.generation == 0]
    low = sorted(
        (e for e in first if e.rung == 0), key=lambda e: (e.fitness or 0) + 0.001 * parse_formula(e.formula).size
    )
    assert len(low) == 10
    # ceil(0.34 * 10) of the first generation, and everybody promoted was among them.
    promoted = {e.canonical for e in first if e.rung == 1}
    assert promoted == {e.canonical for e in low[:4]}
    share = sum(e.rung for e in evaluations) / sum(e.rung == 0 for e in evaluations)
    assert share < 0.7


def test_budgets_stop_and_a_larger_one_goes_on(whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    for budget in (5, 5, 17):
        result = evolve(small(max_evaluations=budget), MaskDistance(), log)
        assert (len(result.evaluations), result.stopped) == (budget, "evaluations")
    assert [r["evaluations"] for r in without_seconds(log) if r["kind"] == "stop"] == [5, 17]
    evolve(small(), MaskDistance(), log)
    evaluations = [r for r in without_seconds(log) if r["kind"] == "evaluation"]
    assert evaluations == [r for r in without_seconds(whole) if r["kind"] == "evaluation"]


def test_time_budget_counts_all_runs(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    first = evolve(small(max_seconds=1e-9), MaskDistance(), log)
    assert (first.stopped, len(first.evaluations)) == ("seconds", 1)
    fitness = MaskDistance()
    assert len(evolve(small(max_seconds=1e-9), fitness, log).evaluations) == 1
    assert fitness.calls == []
    assert evolve(small(max_seconds=1e9), MaskDistance(), log).stopped == "generations"


def test_rejected_formulas_never_win(tmp_path: Path) -> None:
    def fitness(trees: Sequence[Tree], windows: int) -> list[Measurement]:
        # Whatever reaches the second rung is found not to be finite there, except formulas without X.
        return [Measurement(math.nan if windows == 4 and "X" in str(t) else float(t.size)) for t in trees]

    result = evolve(small(), fitness, tmp_path / "log.jsonl")
    assert "X" not in str(result.best)
    assert any(e.fitness is None for e in read_log(tmp_path / "log.jsonl").evaluations)
    with pytest.raises(SearchError, match="no finite fitness"):
        evolve(small(), lambda trees, windows: [Measurement(math.inf)] * len(trees), tmp_path / "none.jsonl")


def test_constants_and_overflow_are_not_evaluated(tmp_path: Path) -> None:
    initial = ("sub(W, W)", "exp(mul(X, X))", "mul(W, exp(X))", "div(W, sub(G, G))", "mul(W, X)", "mul(X, skp(W))")
    fitness = MaskDistance()
    evolve(small(initial=initial, generations=1), fitness, tmp_path / "log.jsonl")
    # exp at the root keeps the order and is dropped: X remains of exp(mul(X, X)).
    given = [e.formula for e in read_log(tmp_path / "log.jsonl").evaluations if e.operator == "initial" and not e.rung]
    assert given == ["X", "W", "mul(W, X)"]
    assert all(e.parts == {"compare": 0.25} for e in read_log(tmp_path / "log.jsonl").evaluations)
    assert len({text for text, windows in fitness.calls if windows == 1}) == 10


def test_a_small_space_is_exhausted(tmp_path: Path) -> None:
    settings = small(terminals=("X",), initial_depth=(0, 0), max_depth=0 + 1, generations=60)
    result = evolve(settings, lambda trees, windows: [Measurement(1.0)] * len(trees), tmp_path / "log.jsonl")
    assert result.stopped == "exhausted"
    assert {t for e in result.evaluations for t in parse_formula(e.formula).terminals()} == {"X"}


@pytest.mark.parametrize("change", [{"seed": 4}, {"rungs": (2, 4)}, {"terminals": ("W", "X")}])
def test_a_log_of_another_search_is_refused(whole: Path, change: dict[str, Any]) -> None:
    before = whole.read_bytes()
    with pytest.raises(ArtifactError, match=next(iter(change))):
        evolve(small(**change), MaskDistance(), whole)
    with pytest.raises(ArtifactError, match="context 'another model'"):
        evolve(small(), MaskDistance(), whole, context="another model")
    assert whole.read_bytes() == before


def test_a_damaged_line_and_all_after_it_are_measured_again(whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    expected = without_seconds(whole)
    for damaged in (
        [*lines[:5], lines[5][:20] + "\n", *lines[6:]],
        [*lines[:5], *lines[6:]],
        [*lines[:5], lines[6], lines[5], *lines[7:]],
        [*lines[:5], lines[5].replace('"fitness"', '"fitnes"'), *lines[6:]],
        [*lines[:5], re.sub(r'("fitness": 0.)(.)', r"\g<1>1\2", lines[5]), *lines[6:]],
        [*lines[:5], "{}\n", *lines[5:]],
        [*lines[:5], "[" * 9999 + "\n", *lines[5:]],
        [*lines[:5], "\ufffd\n"],
    ):
        log.write_text("".join(damaged))
        with pytest.raises(ArtifactError, match=r"log\.jsonl: got an altered or truncated log"):
            read_finished_log(log)
        assert len(read_log(log).evaluations) == 4
        fitness = MaskDistance()
        evolve(small(), fitness, log)
        assert without_seconds(log) == expected
        assert len(fitness.calls) == len(lines) - 6
    assert read_finished_log(log).evaluations[:4] == read_log(whole).evaluations[:4]


def test_what_is_no_log_is_left_alone_and_another_process_kept_out(whole: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    for text in ("notes of mine", "".join(lines[1:]), lines[0].replace("header", "heades"), '{"a": 1}\n'):
        log.write_text(text)
        with pytest.raises(ArtifactError, match=r"log\.jsonl: got no header of a search log.*Move it away"):
            evolve(small(), MaskDistance(), log)
        assert log.read_text() == text
    with pytest.raises(ArtifactError, match="no file"):
        read_log(tmp_path / "absent.jsonl")
    with LogWriter(tmp_path / "locked.jsonl", small().identity(), ""), pytest.raises(LockedError):
        evolve(small(), MaskDistance(), tmp_path / "locked.jsonl")


def test_an_initial_formula_that_cannot_be_read_is_an_error_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(FormulaError, match="one more operand"):
        evolve(small(initial=("mul(W)",)), MaskDistance(), tmp_path / "log.jsonl")
    assert not (tmp_path / "log.jsonl").exists()


def test_too_few_fitness_values_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fewer than 10"):
        evolve(small(), lambda trees, windows: [Measurement(1.0)], tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"crossover": 0.7, "mutation": 0.4}, "at most 1"),
        ({"elite": 10}, "elite"),
        ({"initial_depth": (3, 2)}, "initial_depth"),
        ({"rungs": (4, 4)}, "rungs"),
        ({"terminals": ("Q",)}, "terminals"),
        ({"generation": 3}, "generation"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words):
        small(**change)
