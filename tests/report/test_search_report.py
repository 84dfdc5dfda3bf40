"""The search's report: its numbers, its pages in both forms, what it refuses, and the page in a browser."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_browser import BROWSER, browse

from zpruner.artifacts.files import write_sealed_json
from zpruner.errors import ArtifactError
from zpruner.report.search import load_search, write_search
from zpruner.search import Evaluation
from zpruner.search.log import LogWriter

PARTS = {"score": 1.0, "mask": 1.0, "weights": 0.5, "forward": 7.5}
ROWS = [
    ("W", "initial", 0, 0, math.log(80)),
    ("exp(<b>)", "random", 0, 0, None),
    ("mul(W, sqrt(X))", "initial", 0, 0, math.log(40)),
    ("sub(W, G)", "random", 0, 0, math.log(9e9)),
    ("mul(W, sqrt(X))", "initial", 0, 1, math.log(50)),
    ("mul(W, add(X, G))", "crossover", 1, 0, math.log(35)),
    ("mul(W, add(X, G))", "crossover", 1, 1, math.log(45)),
]


def make(folder: Path, **changes: Any) -> Path:
    with LogWriter(folder / "log.jsonl", {"rungs": [2, 8], "size_penalty": 0.25}, "model abc; text def") as log:
        for index, (formula, operator, generation, rung, fitness) in enumerate(ROWS):
            text = "neg(exp(X))" if "<b>" in formula else formula
            entry = Evaluation(index, generation, rung, (2, 8)[rung], text, text, operator, (), fitness, 6.0, PARTS)
            log.append(replace(entry, parents=("W",) if operator == "crossover" else ()))
        log.stop("seconds", len(ROWS))
    found = {
        "formula": "mul(W, add(X, G))",
        "fitness": math.log(45),
        "evaluations": 7,
        "stopped": "seconds",
        "model": "pip:package==1/folder/Model<1>.gguf",
        "known": {"wanda": math.log(50), "ria": math.log(47.5), "magnitude": None},
        "correlations": [
            {"formula": "mul(W, add(X, G))", "fitness": math.log(45), "with": {"wanda": 0.875, "ria": -0.25}},
            {"formula": "mul(W, sqrt(X))", "fitness": math.log(50), "with": {"wanda": 1.0, "ria": 0.5}},
        ],
        "settings": {"seed": 11, "text": {"source": "a|b"}},
        **changes,
    }
    write_sealed_json(folder / "found.json", found)
    return folder


@pytest.fixture
def pages(tmp_path: Path) -> tuple[str, str]:
    write_search(load_search(make(tmp_path)), tmp_path / "out")
    return (tmp_path / "out/report.html").read_text(), (tmp_path / "out/report.md").read_text()


def test_markdown_has_the_numbers(pages: tuple[str, str]) -> None:
    text = pages[1]
    assert "# Formula search: Model&lt;1&gt;.gguf" in text
    assert "Perplexity **45.00** on the 8 windows" in text
    assert "Better than every known method on the search's text: RIA, the best known method, stands at 47.50." in text
    assert "7 evaluations of 5 formulas in 42.0 s (10.0 a minute); 1 were rejected" in text
    rows = [line for line in text.splitlines() if line.startswith("| 4") or line.startswith("| 5")]
    assert rows == [
        "| 45.00 | **`mul(W, add(X, G))`** (chosen) | 5 | crossover | 1 | -0.250 | 0.875 |",
        "| 50.00 | `mul(W, sqrt(X))` | 4 | initial | 0 | 0.500 | 1.000 |",
        "| 47.50 | RIA, the known method |  |  |  |  |  |",
        "| 50.00 | Wanda, the known method |  |  |  |  |  |",
    ]
    assert "mul\n├── W\n└── add\n    ├── X\n    └── G\n" in text


def test_page_has_materials_time_and_provenance(pages: tuple[str, str]) -> None:
    text = re.sub(r"<[^>]*>", "", re.sub(r"</t[hd]>|</d[td]>", "|", pages[0])).replace("\u202f", " ")
    # W stands in both of the best formulas, and in 4 of all 5 that were tried.
    assert "W|1.00||0.80|" in text
    assert "mul|1.00||0.40|" in text
    assert "exp|0.00||0.20|" in text
    assert "score 10.00 %, mask 10.00 %, weights 5.00 %, forward 75.00 %." in text
    assert "text.source|a|b|" in text
    assert "inputs|model abc; text def|" in text


def test_page_is_offline_escaped_and_draws_what_can_be_drawn(pages: tuple[str, str]) -> None:
    page = pages[0]
    assert "Model&lt;1&gt;.gguf" in page
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", page)
    assert page.count("<svg") == 3
    assert "2 windows: 4 formulas, 1 of them beyond 4 times the best not drawn" in page
    marks = re.findall(r'data-t="([^"]*)"', page)
    assert len(marks) == 5  # 3 on few windows, 2 on all
    assert "mul(W, add(X, G)): 45.00 (crossover, generation 1)" in marks
    assert 'formula: "mul(W, add(X, G))"' in page.replace("&#34;", '"')


def test_equal_data_gives_equal_bytes(tmp_path: Path, pages: tuple[str, str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_search(load_search(make(other)), other / "out")
    assert ((other / "out/report.html").read_text(), (other / "out/report.md").read_text()) == pages


@pytest.mark.parametrize(
    ("known", "words"),
    [
        ({"wanda": math.log(40), "ria": math.log(46)}, "Better than RIA on the search's text, but not than all: Wanda"),
        ({"wanda": math.log(40)}, "No better than any known method on the search's text: Wanda"),
        ({}, "No known method was measured."),
    ],
)
def test_what_is_no_better_is_not_called_better(tmp_path: Path, known: dict[str, float], words: str) -> None:
    write_search(load_search(make(tmp_path, known=known)), tmp_path / "out")
    assert words in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"formula": 3}, "3 under 'formula'"),
        ({"fitness": "low"}, "'low' under 'fitness'"),
        (
            {"correlations": [{"formula": "G", "fitness": 1.0, "with": {}}]},
            "'G', expected a formula of the log's highest rung",
        ),
        ({"known": None}, "under 'known'"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=rf"found\.json: got .*{words}.*dvc repro search/dvc\.yaml"):
        load_search(make(tmp_path, **changes))


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(ArtifactError, match=r"log\.jsonl: got no file"):
        load_search(tmp_path)


@pytest.mark.skipif(BROWSER is None, reason="no chromium to look at the report with")
def test_in_a_browser(tmp_path: Path, pages: tuple[str, str]) -> None:
    probe = """<script>{
      const log = [];
      document.getElementById("theme").click();
      log.push(document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor);
      log.push(getComputedStyle(document.querySelector(".tree text")).fill);
      const mark = document.querySelector(".chart path[data-t]"), box = mark.getBoundingClientRect();
      mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.x, clientY: box.y }));
      log.push(document.getElementById("tip").textContent.includes("generation"));
      log.push(document.documentElement.scrollWidth <= innerWidth);
      document.body.dataset.log = log.join("~");
    }</script></body>"""
    page = tmp_path / "probe.html"
    page.write_text(pages[0].replace("</body>", probe))
    match = re.search(r'data-log="([^"]*)"', browse(page, tmp_path / "p", "--dump-dom", "--window-size=500,900"))
    assert match is not None, "the page's script did not run to its end"
    assert match[1].split("~") == ["dark", "rgb(21, 24, 28)", "rgb(231, 229, 223)", "true", "true"]
