"""The search as a flow: only its own DVC file and what that needs; what it found, shown."""

from __future__ import annotations

import pytest
from toys import Toy

from flows import search as module
from flows.pipeline import pipeline
from flows.search import search

pytestmark = pytest.mark.usefixtures("quick", "worker")

GRAPH = """
stages:
  search:
    wdir: ..
    cmd: >-
      mkdir -p data/search/report && cp out/base.txt data/search/report/report.md &&
      echo '{"formula": "mul(W, X)", "fitness": 1.5, "evaluations": 7, "more": 0}' > data/search/found.json
    deps: [out/base.txt]
    outs: [data/search/found.json, data/search/report]
"""


@pytest.fixture
def searching(toy: Toy) -> Toy:
    (toy.root / "search").mkdir()
    (toy.root / "search" / "dvc.yaml").write_text(GRAPH)
    return toy


def test_the_search_runs_what_it_needs_and_shows_what_it_found(searching: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str]] = []
    monkeypatch.setattr(module, "create_markdown_artifact", lambda text, key: shown.append((key, text)))
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
