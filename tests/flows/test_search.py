"""The search as a flow: only its own DVC file and what that needs; what it found, shown."""

from __future__ import annotations

import pytest
from toys import Toy

from flows import publish
from flows.pipeline import pipeline
from flows.search import search
from zpruner.artifacts.results import FoundFormula

pytestmark = pytest.mark.usefixtures("quick", "worker")

GRAPH = """
stages:
  search:
    wdir: ..
    cmd: >-
      mkdir -p data/search/report && cp out/base.txt data/search/report/report.md &&
      cp search/found.json data/search
    deps: [out/base.txt]
    outs: [data/search/found.json, data/search/report]
"""


@pytest.fixture
def searching(toy: Toy) -> Toy:
    (toy.root / "search").mkdir()
    (toy.root / "search" / "dvc.yaml").write_text(GRAPH)
    found = FoundFormula(
        formula="mul(W, X)",
        fitness=1.5,
        evaluations=7,
        stopped="evaluations",
        known={},
        correlations=(),
        settings={},
        model="toy",
    )
    found.write(toy.root / "search" / "found.json")
    return toy


@pytest.mark.usefixtures("published")
def test_the_search_runs_what_it_needs_and_shows_what_it_found(searching: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(publish, "create_markdown_artifact", lambda text, key: shown.append((key, text)))
    found = {"formula": "mul(W, X)", "fitness": 1.5, "evaluations": 7}
    assert search(str(searching.root)) == found
    assert searching.runs() == ["base"]
    assert shown == [("search", "base 1\n")]
    # A changed input runs it again; the pipeline itself leaves it out.
    searching.change("base", value=2)
    pipeline(str(searching.root))
    assert (searching.root / "data/search/report/report.md").read_text() == "base 1\n"
    search(str(searching.root))
    assert shown[-1] == ("search", "base 2\n")


def test_a_search_that_fails_says_so(searching: Toy) -> None:
    (searching.root / "search" / "dvc.yaml").write_text(GRAPH.replace("mkdir -p", "false && mkdir -p"))
    with pytest.raises(RuntimeError, match=r"search/dvc\.yaml:search failed"):
        search(str(searching.root))
