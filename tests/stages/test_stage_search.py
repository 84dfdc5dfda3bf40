"""The search as a stage, on a tiny model: text, gradients, what it finds and how that is used, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import staged
import tiny
import torch

from stages import apply, evaluate, fetch, gradients, mask, score, search
from zpruner.errors import InvalidSettingError
from zpruner.model import load_model
from zpruner.search import Evaluation, FormulaError, parse_formula, read_log
from zpruner.search.log import LogWriter
from zpruner.text import read_windows

SEARCH = {
    "text": {"source": "source/text.txt", "documents": "lines", "part": [0.75, 1.0], "seqlen": 16, "batch_size": 2},
    "sparsities": [0.5, "2:4"],
    "initial": ["W", "mul(W, sqrt(X))"],
    "population": 6,
    "elite": 2,
    "generations": 3,
    "rungs": [1, 3],
    "seed": 5,
}


def project(root: Path) -> Path:
    """Make a project with all that a search reads."""
    staged.make(root)
    staged.change_params(root, "evaluation.perplexity.part", [0.5, 0.75])
    staged.change_params(root, "search", SEARCH)
    staged.change_params(root, "evaluation.perplexity.windows", 2)
    staged.run_all(root, "gradients")
    fetch.run(fetch.What.search, root)
    gradients.run(root, search=True)
    return root


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return project(tmp_path_factory.mktemp("search") / "prepared")


def copy(prepared: Path, root: Path) -> Path:
    subprocess.run(["cp", "-a", str(prepared), str(root)], check=True)
    return root


def untimed(path: Path) -> list[dict[str, Any]]:
    records = map(json.loads, path.read_text().splitlines())
    return [{key: value for key, value in r.items() if key not in ("seconds", "parts", "seal")} for r in records]


def found(root: Path) -> dict[str, Any]:
    return json.loads((root / "data/search/found.json").read_text())


@pytest.fixture(scope="module")
def searched(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy(prepared, tmp_path_factory.mktemp("search") / "searched")
    search.run(root)
    return root


def test_the_formula_found_is_the_best_of_the_log_and_can_be_used_at_once(searched: Path, tmp_path: Path) -> None:
    root = copy(searched, tmp_path / "p")
    log = read_log(root / "data/search/log.jsonl")
    result = found(root)
    assert log.stopped == "generations"
    assert result["evaluations"] == len(log.evaluations) > 15
    top = {e.formula: e.fitness for e in log.evaluations if e.rung == 1}
    assert top[result["formula"]] == result["fitness"]
    penalised = {f: fitness + 0.002 * parse_formula(f).size for f, fitness in top.items() if fitness is not None}
    assert result["formula"] == min(penalised, key=lambda f: penalised[f])
    assert {e.formula for e in log.evaluations[:2]} == {"W", "mul(W, sqrt(X))"}
    assert set(log.evaluations[0].parts) == {"score", "mask", "weights", "forward"}

    tree = json.loads((root / "data/search/best.json").read_text())
    assert str(parse_formula(tree)) == result["formula"]
    (root / "formulas").mkdir()
    (root / "formulas" / "best.json").write_text(json.dumps(tree))
    formula = {"score": "expression", "settings": {"formula": {"file": "best.json"}}}
    staged.change_params(root, "methods", {"found": formula, "wanda": {"score": "wanda"}})
    staged.change_params(root, "sparsities", {"s50": 0.5, "s24": "2:4"})
    # Its fitness is the mean log perplexity of the two checkpoints on the search's text.
    tiny.plan(root)
    gradients.run(root)
    windows, _ = read_windows(root / "data/search/tokens.arrow")
    for method, fitness in (("found", result["fitness"]), ("wanda", result["known"]["wanda"])):
        score.run(method, root)
        losses = []
        for sparsity in ("s50", "s24"):
            mask.run(method, sparsity, root)
            apply.run(method, sparsity, root)
            model = load_model(root / "data/pruned" / method / sparsity, device="cpu")
            with torch.no_grad():
                losses += [float(model(input_ids=w[None].long(), labels=w[None].long()).loss) for w in windows]
        assert sum(losses) / len(losses) == pytest.approx(fitness, rel=1e-4)


def test_known_methods_are_measured_and_compared(searched: Path) -> None:
    result = found(searched)
    assert list(result["known"]) == ["magnitude", "pruner_zero", "ria", "wanda"]
    assert all(5 < value < 50 for value in result["known"].values())
    rows = {row["formula"]: row["with"] for row in result["correlations"]}
    assert len(rows) == len(result["correlations"]) <= 10
    assert all(-1 <= value <= 1 for row in rows.values() for value in row.values())
    if "mul(W, sqrt(X))" in rows:
        assert rows["mul(W, sqrt(X))"]["wanda"] == pytest.approx(1.0)
    cost = json.loads((searched / "data/search/costs/search.json").read_text())
    assert cost["evaluations"] == result["evaluations"]


def test_a_second_run_measures_nothing_and_a_raised_budget_goes_on(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy(searched, tmp_path / "p")
    before = tiny.files_of(root / "data/search", ("costs",))
    search.run(root)
    assert tiny.files_of(root / "data/search", ("costs",)) == before
    staged.change_params(root, "search.generations", 4)
    capsys.readouterr()
    search.run(root)
    evaluations = read_log(searched / "data/search/log.jsonl").evaluations
    more = read_log(root / "data/search/log.jsonl").evaluations
    assert more[: len(evaluations)] == evaluations
    assert max(e.generation for e in more) == 3
    words = capsys.readouterr().err
    assert f"going on after {len(evaluations)} evaluations" in words
    assert f'to use it: {{score: expression, settings: {{formula: "{found(root)["formula"]}"}}}}' in words
    # Another seed is another search; the first one's log stays.
    staged.change_params(root, "search.seed", 6)
    staged.change_params(root, "search.max_evaluations", 3)
    search.run(root)
    assert len(read_log(root / "data/search/log.jsonl").evaluations) == 3
    assert len(list((root / "data/.searches").iterdir())) == 2


def killed(root: Path, after: int) -> None:
    """Run the stage in its own process and kill it once the log has evaluation `after` in it."""
    child = os.fork()
    if child == 0:
        append = LogWriter.append

        def dying(self: LogWriter, evaluation: Evaluation) -> None:
            append(self, evaluation)
            if evaluation.index == after:
                os.kill(os.getpid(), signal.SIGKILL)

        LogWriter.append = dying
        try:
            search.run(root)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    "moments", [[4], pytest.param([0, 1, 7, 8, 14], marks=pytest.mark.slow)], ids=["once", "again and again"]
)
def test_a_killed_search_ends_as_an_undisturbed_one(
    prepared: Path, searched: Path, tmp_path: Path, moments: list[int]
) -> None:
    root = copy(prepared, tmp_path / "p")
    for moment in moments:
        killed(root, moment)
        assert not (root / "data/search/log.jsonl").exists()
    search.run(root)
    assert untimed(root / "data/search/log.jsonl") == untimed(searched / "data/search/log.jsonl")
    for name in ("best.json", "found.json"):
        assert (root / "data/search" / name).read_bytes() == (searched / "data/search" / name).read_bytes()
    assert len(list((root / "data/.searches").iterdir())) == 1


def test_gradients_are_copied_where_the_pipeline_has_them(prepared: Path, tmp_path: Path, monkeypatch: Any) -> None:
    root = copy(prepared, tmp_path / "p")
    collected = tiny.files_of(root / "data/search/gradients")
    assert len(collected) > 20
    staged.change_params(root, "methods", {"zero": {"score": "pruner_zero"}})
    tiny.plan(root)
    gradients.run(root)
    monkeypatch.setattr(gradients, "collect_gradients", None)
    staged.change_params(root, "machine.memory", 1e-9)  # a copy needs none for the model
    gradients.run(root, search=True)
    assert tiny.files_of(root / "data/search/gradients") == collected
    # Formulas without G need none.
    staged.change_params(root, "search.terminals", ["W", "X"])
    gradients.run(root, search=True)
    assert [path.name for path in (root / "data/search/gradients").iterdir()] == ["index.json"]
    staged.change_params(root, "search.max_evaluations", 4)
    search.run(root)
    assert "pruner_zero" not in found(root)["known"]
    staged.change_params(root, "search.initial", ["mul(W, G)"])
    monkeypatch.undo()
    gradients.run(root, search=True)
    assert tiny.files_of(root / "data/search/gradients") == collected


@pytest.mark.parametrize(
    ("where", "value", "error", "words"),
    [
        ("search.initial", ["mul(W, Q)"], FormulaError, "Q"),
        ("machine.streaming", "always", InvalidSettingError, "masks the whole model in memory"),
        ("search.sparsities", ["3:7"], Exception, "a width that 7 divides"),
        ("search.rungs", [1, 30], InvalidSettingError, "30 windows asked for, expected at most 3"),
    ],
)
def test_bad_settings_are_told(
    prepared: Path, tmp_path: Path, where: str, value: Any, error: type[Exception], words: str
) -> None:
    root = copy(prepared, tmp_path / "p")
    staged.change_params(root, where, value)
    with pytest.raises(error, match=words):
        search.run(root)


def test_no_section(prepared: Path, tmp_path: Path) -> None:
    root = copy(prepared, tmp_path / "p")
    staged.change_params(root, "search", None)
    with pytest.raises(InvalidSettingError, match="no section search"):
        search.run(root)
    evaluate.run(dense=True, root=root)
