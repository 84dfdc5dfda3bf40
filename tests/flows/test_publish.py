"""What Prefect shows of a run: rounded numbers in a fixed order, and the report with its charts."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from flows.graph import Graph, Instance
from flows.publish import model_name, read_results, report, table

ROWS = [
    {
        "variant": "wanda-s50",
        "perplexity": 23.456789,
        "sparsity": 0.49999,
        "layer_error": 0.0123456,
        "bytes": {"stored": 269_060_552, "bitmask": 1},
        "loss": 3.1,
        "windows": 6,
        "checksum": "abc",
    },
    {"variant": "dense", "perplexity": 20.0, "sparsity": 0.0, "bytes": {"stored": 269_060_552}},
    {"variant": "other", "perplexity": 10.0, "perplexity_interval": {"low": 1.0}},
]


def test_the_table_is_ordered_rounded_and_complete() -> None:
    rows = table(ROWS)
    assert [row["variant"] for row in rows] == ["dense", "wanda-s50", "other"]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert list(rows[0])[:4] == ["variant", "perplexity", "change", "MB"]
    assert rows[1] == {
        "variant": "wanda-s50",
        "perplexity": 23.46,
        "change": "+17.3%",
        "MB": 269.1,
        "layer error": 0.01235,
        "sparsity": 0.5,
    }
    assert (rows[0]["change"], rows[2]["change"], rows[2]["MB"]) == ("", "-50.0%", "")
    assert table([]) == []


def test_rows_are_variants_of_both_kinds_of_files(tmp_path: Path) -> None:
    """An instance's metrics, and a file that dvc.yaml lists apart and that maps variants to theirs."""
    summary = {"dense": {"perplexity": 30.0, "MB": 269.06}, "wanda-s50": {"perplexity": 62.5, "change": 1.08}}
    (tmp_path / "dvc.yaml").write_text("stages: {}\nmetrics: [data/report/summary.json, elsewhere.json]\n")
    (tmp_path / "data/report").mkdir(parents=True)
    (tmp_path / "data/report/summary.json").write_text(json.dumps(summary))
    (tmp_path / "out.json").write_text('{"perplexity": 7.0}')
    (tmp_path / "elsewhere.json").write_text('{"perplexity": 8.0}')
    report = Instance("report", "", frozenset(), outputs=("data/report",))
    other = Instance("evaluate@ria-s50", "", frozenset(), outputs=("out.json",), metrics=("out.json",))
    rows = read_results(tmp_path, Graph([report, other]))
    assert [(row["variant"], row["perplexity"]) for row in rows] == [("ria-s50", 7), ("dense", 30), ("wanda-s50", 62.5)]
    assert [row["variant"] for row in read_results(tmp_path, Graph([other]))] == ["ria-s50"]
    assert table(rows) == [
        {"variant": "dense", "perplexity": 30.0, "change": "", "MB": 269.1},
        {"variant": "ria-s50", "perplexity": 7.0, "change": "-76.7%", "MB": ""},
        {"variant": "wanda-s50", "perplexity": 62.5, "change": "+108.3%", "MB": ""},
    ]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A report with the data of one plot, in a project whose dvc.yaml names two."""
    plot = "template: scatter\n      x: {{{0}/points.json: a}}\n      y: {{{0}/points.json: b}}\n"
    (tmp_path / "dvc.yaml").write_text(
        f"plots:\n  - One:\n      {plot.format('page')}  - Two:\n      {plot.format('elsewhere')}"
        "  - page/points.json\n  - Three: null\n  - Four: {x: a, y: {page/points.json: [a, b]}}\n"
    )
    for name in ("page", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "points.json").write_text(json.dumps([{"m": "x", "a": 0.5, "b": 7.0, "c": None}]))
    (tmp_path / "page" / "report.md").write_text("# Title\n\nWords.\n\n## One\n\n## Two\n")
    return tmp_path / "page" / "report.md"


def test_a_report_carries_its_charts_before_its_sections(page: Path) -> None:
    text = report(page.parents[1] / "dvc.yaml", page)
    head, image, rest = text.split("\n\n", 2)[0], text[text.index("![") : text.index("## One")], text[-20:]
    assert (head, rest.endswith("## One\n\n## Two\n")) == ("# Title", True)
    assert image.startswith("![One](data:image/png;base64,")
    assert base64.b64decode(image.partition("base64,")[2].rstrip().rstrip(")")).startswith(b"\x89PNG")
    assert text.count("![") == 1
    (page.parent / "points.json").unlink()
    assert report(page.parents[1] / "dvc.yaml", page) == page.read_text()


def test_a_name_shows_no_credentials(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("model: {source: 'https://me:pw@host/model.gguf?token=pw'}\n")
    assert model_name(tmp_path) == "model"
