"""Sizes, speeds, divergences, tasks, masks and published numbers in the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_extras import make_full_tree
from report_tree import METHODS, edit, make_tree, read

from zpruner.report import ReportData, write
from zpruner.report.data import Variant
from zpruner.report.figures import commands, cost, overlap, published, samples, scores, tasks
from zpruner.report.page import Figure
from zpruner.report.ranking import Report

METRICS = "evaluation/wanda/s24.json"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_full_tree(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def data(tree: Path) -> ReportData:
    return read(tree)


@pytest.fixture(scope="module")
def report(data: ReportData) -> Report:
    return Report.of(data)


def words(figure: Figure | None) -> str:
    """What a figure says: its caption, and cells of a row separated by bars."""
    assert figure is not None
    text = re.sub(r"</t[hd]>", "|", f"{figure.caption} {figure.body}".replace("</tr>", "\n"))
    return re.sub(r"<[^>]*>", "", text).replace("\u202f", " ")


def test_the_page_has_every_section_and_no_more_without(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path / "full")
    page = (tmp_path / "full/report.html").read_text()
    for section in ("predictions", "masks", "bytes-and-speed"):
        assert f'<section id="{section}"' in page
        assert f'href="#{section}"' in page
    assert "http" not in page.replace("http-equiv", "")
    write(read(make_tree(tmp_path)), tmp_path / "plain")
    page = (tmp_path / "plain/report.html").read_text()
    assert not re.search('id="(predictions|masks)"', page)


def test_samples_stand_side_by_side_with_what_differs_from_dense_marked(report: Report) -> None:
    figure = samples.figure(report)
    assert figure is not None
    rows = dict(re.findall(r"<dt>(?:<svg.*?</svg>)?(.*?)</dt><dd>(.*?)</dd>", figure.body))
    assert rows["the text"] == "<span>the</span> <span> &lt;b&gt;</span>"
    assert rows["dense"] == "<span>the</span> <span> dog</span>"
    assert rows["wanda-s50"] == "<mark>a</mark> <mark>↵</mark>"
    assert rows["zpruner-s50"] == "<span>the</span> <mark>↵</mark>"
    plain = replace(
        report.data,
        dense=replace(report.data.dense, details=report.data.dense.details.model_copy(update={"sample": None})),
    )
    assert samples.figure(Report.of(plain)) is None, "a model without a tokenizer"


def test_tasks_say_what_was_run_and_on_which_model(report: Report) -> None:
    figure = tasks.figure(report)
    assert figure is not None
    assert re.findall("<h3>(.*?)</h3>", figure.body) == [
        "boolq: acc",
        "hellaswag_local: acc",
        "hellaswag_local: acc_norm",
    ]
    assert "hellaswag_local (version 1.0, 0-shot, 1,000 questions)" in figure.caption
    assert figure.caption.endswith("they are those of the table above.")
    assert 'data-t="wanda 50 %: 0.36 ± 0.016 (one standard error)"' in figure.body
    assert figure.body.count("data-t=") == 3 * 13, "dense and twelve variants"


def test_a_dense_model_scored_as_a_pruned_one_is_told(tmp_path: Path) -> None:
    tree = make_full_tree(tmp_path)
    values = json.loads((tree / METRICS).read_text())
    edit(tree / METRICS, zero_shot=values["zero_shot"] | {"sparsity": 0.0})
    assert "except wanda-s24 (0.00 %)." in words(tasks.figure(Report.of(read(tree))))


def test_overlap_is_symmetric_with_its_chance_level(report: Report) -> None:
    figure = overlap.figure(report)
    assert figure is not None
    assert "Two random masks would reach 0.33 or 0.25." in figure.caption
    tables = re.findall("<tbody>(.*?)</tbody>", figure.body, re.DOTALL)
    assert len(tables) == 3
    for table in tables:
        cells = [re.findall(r"</i>([\d.]+)</td>", row) for row in table.split("</tr>")][:4]
        assert cells == [list(column) for column in zip(*cells, strict=True)]
        assert [cells[i][i] for i in range(4)] == ["1"] * 4
        assert 0.5 < float(cells[0][1]) < 1.0


def test_one_mask_alone_has_no_overlap(tree: Path) -> None:
    assert overlap.figure(Report.of(read(tree, {"wanda": METHODS["wanda"]}))) is None


def test_histograms_are_of_unstructured_masks_on_shared_axes(report: Report) -> None:
    figure = scores.figure(report)
    assert figure is not None
    titles = re.findall("<h3>(.*?)</h3>", figure.body)
    assert [title for title in titles if "code" in title] == [
        "<code>model.layers.2.self_attn.q_proj</code>",
        "<code>model.layers.2.mlp.down_proj</code>",
    ]
    assert [title.replace("\u202f", " ") for title in titles[1:5]] == [f"{method} at 50 %" for method in METHODS]
    only_nm = replace(report.data, variants=tuple(v for v in report.data.variants if v.spec.is_nm))
    assert scores.figure(Report.of(only_nm)) is None


def test_scores_are_relative_to_the_cut_whatever_their_unit(tmp_path: Path) -> None:
    """Two methods whose scores differ by a factor of 1,000 cut at the same place of the same axis."""
    tree = make_full_tree(tmp_path)
    path = tree / "evaluation/ria/s50.layers.json"
    found = json.loads(path.read_text())["score_histograms"]
    edit(path, score_histograms=[{**h, "edges": [edge + 3 for edge in h["edges"]]} for h in found])
    figure = scores.figure(Report.of(read(tree)))
    assert figure is not None
    panels = dict(re.findall("<h3>(\\w+) at.*?</h3>(.*?)</svg>", figure.body, re.DOTALL))
    paths = {name: re.findall(r'<path d="([^"]*)"', panel) for name, panel in panels.items()}
    assert paths["ria"] == paths["wanda"] != []


def test_what_came_from_a_cache_is_counted_and_set_apart(tree: Path) -> None:
    ran = {"score/wanda.json", "mask/wanda/s24.json", "apply/wanda/s24.json", "calibrate.json"}
    figure = cost.figure(Report.of(read(tree, computed=ran)))
    text = words(figure)
    for name, hits in (("wanda-s24", "1 of 4"), ("wanda-s50", "3 of 4"), ("ria-s24", "4 of 4")):
        assert re.search(rf"{name}\|.*\|{hits}\|", text), name
    assert figure is not None
    assert figure.body.count("from a cache") == 12 * 4 + 2 - 3 - 2, "the score of wanda counts in three variants"
    assert "fetch model 4.2 s (1.21 GiB, from cache), calibrate 21.5 s (1.21 GiB)." in text


def test_without_knowledge_of_caches_none_is_claimed(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "from cache" not in page
    assert "From cache" not in page


PUBLISHED = {name: {"score": name, "group": METHODS[name]["group"]} for name in METHODS}
LLAMA = {"source": "hf:meta-llama/Llama-2-7b-hf@0123456789abcdef0123456789abcdef01234567"}


def claim(tree: Path, protocol: str) -> None:
    path = tree / "evaluation/dense.layers.json"
    provenance = json.loads(path.read_text())["provenance"]
    edit(path, provenance=provenance | {"evaluation_protocol": protocol})


def compared_with(tree: Path, *arguments: Any, **changes: Any) -> list[list[str]]:
    """The rows of the comparison with published numbers."""
    figure = published.figure(Report.of(read(tree, *arguments, **changes)))
    rows = [] if figure is None else [line.split("|")[:-1] for line in words(figure).splitlines()]
    return [row for row in rows if len(row) == 4][1:]


def test_published_numbers_only_under_their_protocol(tmp_path: Path) -> None:
    tree = make_full_tree(tmp_path)
    claim(tree, "c4")
    assert compared_with(tree, PUBLISHED, model=LLAMA) == []
    claim(tree, "wikitext2")
    found = compared_with(tree, PUBLISHED, model=LLAMA)
    assert [(row[0], row[2]) for row in found] == [("wanda", "7.76"), ("ria", "6.81"), ("zpruner", "6.74")]
    wanda: Variant = read(tree, PUBLISHED).variants[3]
    assert found[0][3] == f"{(wanda.metrics.perplexity / 7.76 - 1) * 100:+.1f} %"
    assert compared_with(tree, PUBLISHED) == [], "the model of the table is another"


@pytest.mark.parametrize(
    ("settings", "compared"),
    [
        ({"score": "wanda", "group": "row"}, True),
        ({"score": "wanda"}, True),
        ({"score": "wanda", "group": "layer"}, False),
        ({"score": "wanda", "update": {"name": "obs"}}, False),
        ({"score": "wanda", "refine": {"name": "swaps"}}, False),
        ({"score": "ria", "settings": {"activation_power": 1.0}}, False),
        ({"score": "sparsegpt", "update": {"name": "obs"}}, True),
        ({"score": "sparsegpt"}, False),
        ({"score": "sparsegpt", "update": {"name": "obs"}, "correct": {}}, False),
        ({"score": "sparsegpt", "update": {"name": "obs", "settings": {"damping": 0.1}}}, False),
        ({"score": "sparsegpt", "update": {"name": "obs", "settings": {"damping": 0.01}}}, True),
    ],
)
def test_only_a_paper_s_own_composition_is_compared(
    tmp_path: Path, settings: dict[str, object], compared: bool
) -> None:
    tree = make_full_tree(tmp_path)
    claim(tree, "wikitext2")
    assert len(compared_with(tree, {"wanda": settings}, model=LLAMA)) == compared


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
    assert compared_with(tree, PUBLISHED, model={"source": source})[0][2] == expected


def test_packed_checkpoints_are_linked(report: Report) -> None:
    text = commands.figure(report).body
    assert 'href="../packed/zpruner/s50/"' in text
    assert "dvc repro pack@zpruner-s50" in text
    assert "packed/wanda" not in text
