"""Sizes, speeds, divergences, tasks, masks and published numbers in the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from report_extras import STORED, make_full_tree
from report_tree import METHODS, edit, make_tree, read

from zpruner.errors import ArtifactError
from zpruner.report import ReportData, write
from zpruner.report._costs import cost_table, shared_costs
from zpruner.report._masks import histogram_panels, overlaps
from zpruner.report._published import published
from zpruner.report._tasks import size_table, task_figure

METRICS = "evaluation/wanda/s24.json"
LAYERS = "evaluation/wanda/s24.layers.json"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_full_tree(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def data(tree: Path) -> ReportData:
    return read(tree)


def test_the_page_has_every_section_and_no_more_without(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path / "full")
    page = (tmp_path / "full/report.html").read_text()
    for section in ("predictions", "masks", "size"):
        assert f'<section id="{section}"' in page
        assert f'href="#{section}"' in page
    assert "http" not in page.replace("http-equiv", "")
    write(read(make_tree(tmp_path)), tmp_path / "plain")
    page = (tmp_path / "plain/report.html").read_text()
    assert not re.search('id="(predictions|masks)"', page)


def test_markdown_has_the_same_numbers(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| wanda-s24 | 0.160 | 0.150 to 0.180 | 74.00 % | 71.00 to 77.00 % |" in text
    assert "| wanda-s24 | boolq | acc | 0.3600 | 0.0156 | 1.0 | 50.00 % |" in text
    assert "| dense | 269.0 MB |  |  |  |  |  |" in text
    assert "| wanda-s24 | 269.0 MB | 151.3 MB (56%) | 151.3 MB (56%) | 1,660 | 1,648 | 1.01 |" in text


def test_sizes_and_speeds(data: ReportData) -> None:
    table = size_table(data)
    assert table is not None
    assert table.how == "4,096 tokens on cpu (2 threads)"
    assert [row.packed != "" for row in table.rows[1:4]] == [False, False, True]
    variant = next(v for v in data.variants if v.spec.name == "wanda-s24")
    assert variant.evaluation.metrics.bytes is not None
    assert variant.evaluation.metrics.bytes.packed == round(STORED * 0.5625)
    assert variant.seconds == pytest.approx(sum(c.cost.seconds for c in variant.costs if c.stage != "evaluate"))


def test_tasks_say_what_was_run_and_on_which_model(data: ReportData) -> None:
    figure = task_figure(data)
    assert figure is not None
    assert [panel.title for panel in figure.panels] == [
        "boolq: acc",
        "hellaswag_local: acc",
        "hellaswag_local: acc_norm",
    ]
    assert "hellaswag_local (version 1.0, 0-shot, 1,000 questions)" in figure.tasks
    assert figure.proof.endswith("they are those of the table above.")
    svg = figure.panels[1].svg
    assert 'data-t="wanda 50 %: 0.36 ± 0.016 (one standard error)"' in svg
    assert svg.count("data-t=") == 13, "dense and twelve variants"


def test_a_dense_model_scored_as_a_pruned_one_is_told(tmp_path: Path) -> None:
    tree = make_full_tree(tmp_path)
    values = json.loads((tree / METRICS).read_text())
    edit(tree / METRICS, zero_shot=values["zero_shot"] | {"sparsity": 0.0})
    figure = task_figure(read(tree))
    assert figure is not None
    assert figure.proof.endswith("except wanda-s24 (0.00 %).")


def test_overlap_is_symmetric_with_its_chance_level(data: ReportData) -> None:
    tables = overlaps(data)
    assert [table.chance for table in tables] == ["0.33", "0.25", "0.33"]
    for table in tables:
        cells = [[text for text, _ in row] for _, row in table.rows]
        assert cells == [list(column) for column in zip(*cells, strict=True)]
        assert [cells[i][i] for i in range(4)] == ["1"] * 4
        assert 0.5 < float(cells[0][1]) < 1.0


def test_one_mask_alone_has_no_overlap(tree: Path) -> None:
    assert overlaps(read(tree, {"wanda": METHODS["wanda"]})) == []


def test_histograms_are_of_unstructured_masks(data: ReportData) -> None:
    panels = histogram_panels(data)
    assert [layer for layer, _ in panels] == ["model.layers.2.self_attn.q_proj", "model.layers.2.mlp.down_proj"]
    assert [panel.title for panel in panels[0][1]] == [f"{method} at 50 %" for method in METHODS]
    only_nm = replace(data, variants=tuple(v for v in data.variants if v.spec.is_nm))
    assert histogram_panels(only_nm) == []


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (METRICS, {"bytes": {"bitmask": 3}}, "'bytes.stored'"),
        (METRICS, {"bytes": 7}, "got 7 under 'bytes'"),
        (METRICS, {"perplexities": 7}, "got 7 under 'perplexities', expected a key of this version"),
        (METRICS, {"divergence": {"kl": 0.1, "top1_agreement": 1.5, "windows": 8}}, "'divergence.top1_agreement'"),
        (METRICS, {"zero_shot": {"sparsity": 0.5, "tasks": {"a": {"acc": "high"}}}}, "'zero_shot.tasks.a.acc'"),
        (
            METRICS,
            {"divergence": {"kl": 1, "kl_interval": {"low": 0}, "top1_agreement": 1, "windows": 8}},
            "'divergence.kl_interval.high'",
        ),
        (METRICS, {"zero_shot": {"tasks": {}}}, "'zero_shot.sparsity'"),
        (
            LAYERS,
            {"score_histograms": [{"layer": "x", "edges": [0, 1], "kept": [1, 2], "pruned": [1, 2]}]},
            "3 edges, one more than counts",
        ),
        ("costs/evaluate/wanda/s24.json", {"tokens_per_second": "fast"}, "'tokens_per_second'"),
    ],
)
def test_what_is_there_is_read_strictly(tmp_path: Path, file: str, changes: dict[str, object], message: str) -> None:
    tree = make_full_tree(tmp_path)
    edit(tree / file, **changes)
    with pytest.raises(ArtifactError, match=re.escape(message)):
        read(tree)


def test_what_came_from_a_cache_is_counted_and_set_apart(tree: Path, tmp_path: Path) -> None:
    ran = {"score/wanda.json", "mask/wanda/s24.json", "apply/wanda/s24.json", "calibrate.json"}
    data = read(tree, computed=ran)
    table = cost_table(data)
    assert table is not None
    hits = {row.name: row.hits for row in table.rows}
    assert (hits["wanda-s24"], hits["wanda-s50"], hits["ria-s24"]) == ("1 of 4", "3 of 4", "4 of 4")
    assert [part.cached for part in next(r for r in table.rows if r.name == "wanda-s24").parts] == [False] * 3 + [True]
    assert {row.name: row.hits for row in shared_costs(data)} == {"fetch model": "1 of 1", "calibrate": "0 of 1"}
    write(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "fetch model 4.2 s (1.21 GiB, from cache)" in page
    assert page.count("from a cache") == 12 * 4 - 3 - 2, "the score of wanda counts in three variants"
    assert "| 1 of 4 |" in (tmp_path / "report.md").read_text()


def test_without_knowledge_of_caches_none_is_claimed(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "from cache" not in page
    assert "From cache" not in page


LLAMA = {"source": "hf:meta-llama/Llama-2-7b-hf@0123456789abcdef0123456789abcdef01234567"}


def claim(tree: Path, protocol: str) -> None:
    path = tree / "evaluation/dense.layers.json"
    provenance = json.loads(path.read_text())["provenance"]
    edit(path, provenance=provenance | {"evaluation_protocol": protocol})


def test_published_numbers_only_under_their_protocol(tmp_path: Path) -> None:
    tree = make_full_tree(tmp_path)
    claim(tree, "c4")
    assert published(read(tree, model=LLAMA)).rows == ()
    claim(tree, "wikitext2")
    found = published(read(tree, model=LLAMA))
    assert [(row.method, row.published) for row in found.rows] == [
        ("wanda", "7.76"),
        ("ria", "6.81"),
        ("zpruner", "6.74"),
    ]
    ours = read(tree).variants[3].evaluation.metrics.perplexity
    assert found.rows[0].change == f"{(ours / 7.76 - 1) * 100:+.1f} %"
    assert published(read(tree)).rows == (), "the model of the table is another"
    write(read(tree, model=LLAMA), tmp_path / "out")
    assert "Against published numbers" in (tmp_path / "out/report.html").read_text()
    assert "## Against published numbers" in (tmp_path / "out/report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "compared"),
    [
        ({"score": "wanda", "group": "row"}, True),
        ({"score": "wanda"}, True),
        ({"score": "wanda", "group": "layer"}, False),
        ({"score": "wanda", "update": {"name": "obs"}}, False),
        ({"score": "wanda", "refine": {"name": "swaps"}}, False),
        ({"score": "wanda", "settings": {"a": 1}}, False),
        ({"score": "sparsegpt", "update": {"name": "obs"}}, True),
        ({"score": "sparsegpt"}, False),
    ],
)
def test_only_a_paper_s_own_composition_is_compared(
    tmp_path: Path, settings: dict[str, object], compared: bool
) -> None:
    tree = make_full_tree(tmp_path)
    claim(tree, "wikitext2")
    rows = published(read(tree, {"wanda": settings}, model=LLAMA)).rows
    assert len(rows) == compared


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:facebook/opt-1.3b@main", "18.41"),
        ("models/Llama-2-7b-hf", "7.76"),
        ("hf:meta-llama/Llama-3.1-8B@main", "11.53"),
        ("hf:meta-llama/Meta-Llama-3.1-8B@main", "11.53"),
    ],
)
def test_models_are_known_by_name(tmp_path: Path, source: str, expected: str) -> None:
    tree = make_full_tree(tmp_path)
    claim(tree, "wikitext2")
    assert published(read(tree, model={"source": source})).rows[0].published == expected
