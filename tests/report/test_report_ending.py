"""What a run prints last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_extras import make_full_tree
from report_tree import METHODS, edit, make_tree, read

from zpruner.artifacts.layout import Layout
from zpruner.artifacts.results import Continuation
from zpruner.report import ReportData, ending
from zpruner.report.figures import headline, samples
from zpruner.report.known import why_so_much
from zpruner.report.ranking import Report

LAYOUT = Layout(Path())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    data = make_full_tree(tmp_path)
    for name in ("dense", "zpruner/s50", "wanda/s50"):
        said = {"prompt": "The capital of", "text": f"\n {name.partition('/')[0]}\nland"}
        edit(data / f"evaluation/{name}.layers.json", continuation=said)
    return data


def test_the_end_of_a_run(tree: Path) -> None:
    text = ending(read(tree), LAYOUT)
    parts = text.split("\n\n")
    assert parts[0].startswith("method ")
    assert parts[1].startswith("Of the pruned variants zpruner 50 % loses least")
    assert parts[2].splitlines() == [
        "The capital of",
        "dense        dense land",
        "zpruner-s50  zpruner land",
    ], "neither second best nor a packed one that was not asked"
    assert "data/report/report.html" in parts[3]
    assert "packed              data/packed/zpruner/s60: 130.0 MB instead of 269.0 (0.48 x)" in parts[3]
    assert "zpruner export zpruner s50 -o RELEASE" in parts[4]
    assert "list `best` under methods" in parts[4]
    assert "packed.rounds" not in parts[4], "speeds were measured"


def test_a_packed_model_s_words_stand_beside_those_of_the_pruned_one(tree: Path) -> None:
    data = read(tree)
    packed = next(v for v in data.variants if v.spec.name == "zpruner-s60")
    costs = tuple(
        replace(found, cost=found.cost.model_copy(update={"packed": found.cost.packed.model_copy(update=SAID)}))
        if found.cost.packed is not None
        else found
        for found in packed.costs
    )
    variants = tuple(replace(v, costs=costs) if v is packed else v for v in data.variants)
    data = replace(data, variants=variants)
    assert "zpruner-s60, packed  it speaks" in ending(data, LAYOUT)
    figure = samples.continued(Report.of(data))
    assert figure is not None
    assert figure.caption == "After “The capital of”, the most likely token at each step."
    assert [name in figure.body for name in ("wanda-s50", "zpruner-s60, packed", "ria-s50")] == [True, True, False]


SAID = {"continuation": Continuation(prompt="The capital of", text="it speaks")}


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    data = read(make_tree(tmp_path, {}, {}), {}, {})
    parts = ending(data, LAYOUT).split("\n\n")
    assert len(parts) == 3
    assert "export" not in parts[2]


def lossy(tree: Path) -> Report:
    """The report of a tree without mild variants."""
    return Report.of(read(tree, {"magnitude": METHODS["magnitude"]}))


def test_a_small_model_that_loses_much_is_explained(tmp_path: Path) -> None:
    report = lossy(make_tree(tmp_path, {"magnitude": METHODS["magnitude"]}))
    assert why_so_much(report) == (
        "Small models have few weights to spare: this one has 14 million that can be pruned. Llama-2-7B, with 6,476 "
        "million, loses +25.4 % at 50 % by Wanda (arXiv 2306.11695)."
    )
    large = [v.details.model_copy(update={"layers": grown(v.details.layers)}) for v in report.data.variants]
    variants = tuple(
        replace(v, evaluation=replace(v.evaluation, details=details))
        for v, details in zip(report.data.variants, large, strict=True)
    )
    assert why_so_much(Report.of(replace(report.data, variants=variants))) == ""
    assert why_so_much(Report.of(read(make_tree(tmp_path / "mild")))) == "", "17 % at 50 % is no more"


def grown(layers: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(layer.model_copy(update={"weights": layer.weights * 100}) for layer in layers)  # type: ignore[attr-defined]


def placed(data: ReportData) -> str:
    return headline.figure(Report.of(data)).markdown


def test_a_flagship_behind_is_named(tmp_path: Path) -> None:
    half = {"s50": "0.5"}
    methods = {"first": METHODS["ria"], "magnitude": METHODS["magnitude"], "best": {"score": "admm"}}
    tree = make_tree(tmp_path, methods, half)
    for name, loss in (("first", 3.5), ("magnitude", 3.6), ("best", 3.7)):
        edit(tree / f"evaluation/{name}/s50.json", perplexity=loss)
    assert "best is number 3 of 3 at 3.70, +5.7 % from the first." in placed(read(tree, methods, half))
    edit(tree / "evaluation/best/s50.json", perplexity=3.55)
    assert "best is number" not in placed(read(tree, methods, half)), "the second is named already"
