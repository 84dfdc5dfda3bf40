"""Variants as offers: bytes counted or computed, speeds in pairs, tasks; and the table and charts of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_extras import STORED, TABLES, make_full_tree, put_packed
from report_tree import METHODS, edit, make_tree, read

from zpruner.advice import Offer
from zpruner.report import ReportData, write
from zpruner.report.figures import frontier, offers
from zpruner.report.figures.offers import table_of
from zpruner.report.offers import offers as offers_of
from zpruner.report.ranking import Report

ONE, HALF = {"wanda": METHODS["wanda"]}, {"s50": "0.5"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    return read(make_full_tree(tmp_path_factory.mktemp("full")))


def named(data: ReportData) -> dict[str, Offer]:
    return {offer.variant: offer for offer in offers_of(data)}


def test_bytes_are_counted_where_a_variant_was_packed_and_computed_elsewhere(data: ReportData) -> None:
    found = named(data)
    packed, computed = found["zpruner-s50"], found["wanda-s50"]
    assert (packed.form, packed.computed, packed.disk, packed.read) == ("packed", False, 150_000_000, 93_000_000)
    size = round(STORED * 0.5625)
    assert (computed.form, computed.computed, computed.disk, computed.read) == ("packed", True, size, size - TABLES)
    assert (found["dense"].form, found["dense"].disk, found["dense"].read) == ("plain", STORED, STORED - TABLES)


def test_without_packed_bytes_zeros_are_stored(tmp_path: Path) -> None:
    found = named(read(make_tree(tmp_path, ONE, HALF), ONE, HALF))["wanda-s50"]
    assert (found.form, found.disk, found.read, found.decode) == ("plain", STORED, None, None)


def test_speeds_are_medians_of_pairs(tmp_path: Path) -> None:
    data = make_tree(tmp_path, ONE, HALF)
    put_packed(data, "wanda/s50", 176_000_000, 1.4)
    edit(
        data / "costs/pack/wanda/s50.json",
        packed={
            "dense": STORED,
            "packed": 176_000_000,
            "speed": {
                "kernels": "avx2 kernels with OpenMP, from x.so",
                "threads": 2,
                "decode": [20.0, 9.0, 33.0],
                "control_decode": [10.0, 9.0, 11.0],
                "torch_decode": [5.0, 3.0, 10.0],
                "prefill": [99.0, 97.0, 98.0],
                "control_prefill": [1.0, 1.0, 1.0],
                "torch_prefill": [100.0, 100.0, 100.0],
            },
        },
    )
    report = Report.of(read(data, ONE, HALF))
    found = named(report.data)
    decode = found["wanda-s50"].decode
    assert decode is not None
    assert (decode.tokens_per_second, decode.over_dense, decode.over_control) == (20.0, pytest.approx(3.3), 2.0)
    assert found["wanda-s50"].prefill == 0.98
    assert found["dense"].decode is not None
    assert (found["dense"].decode.tokens_per_second, found["dense"].decode.over_dense) == (5.0, 1.0)
    figure = offers.figure(report)
    assert "avx2 kernels with OpenMP, 2 threads." in figure.body
    assert "Computed:" not in figure.body


def test_tasks_stand_beside_perplexity(data: ReportData) -> None:
    assert named(data)["zpruner-s50"].tasks["hellaswag_local acc_norm"] == (pytest.approx(0.40), 0.0156)
    table = table_of(Report.of(data), offers_of(data))
    titles = [column.title for column in table.columns]
    assert titles[-3:] == ["boolq acc", "hellaswag_local acc", "hellaswag_local acc_norm"]
    assert table.rows[0].each()[-1].text == "0.42 ± 0.016"


def test_costs_at_which_nothing_is_better_are_marked(data: ReportData) -> None:
    table = table_of(Report.of(data), offers_of(data))
    titles = [column.title for column in table.columns]
    marked = {
        title: [row.each()[0].text for row in table.rows if row.each()[titles.index(title)].mark]
        for title in ("MB on disk", "MB a token", "decode, x dense")
    }
    assert marked["MB on disk"] == ["dense", "zpruner 50 %", "zpruner 60 %", "ria 60 %"]
    assert marked["MB a token"] == marked["MB on disk"]
    assert marked["decode, x dense"] == ["dense", "zpruner 50 %", "zpruner 60 %"]


def test_charts_leave_to_the_table_what_would_flatten_them(data: ReportData, tmp_path: Path) -> None:
    figure = frontier.figure(Report.of(data))
    assert figure is not None
    assert [f"<h3>Against {axis}</h3>" in figure.body for axis in ("MB on disk", "MB read per token")] == [True, True]
    assert "decode time, times dense" in figure.body
    assert "Not drawn: magnitude-s50 (223.4)" in figure.caption
    assert figure.body.count("data-t=") == 10 + 10 + 3, "nine variants and dense; two with a measured speed and dense"
    assert frontier.figure(Report.of(read(make_tree(tmp_path)))) is None, "all take the same bytes"


def test_the_page_and_its_markdown_hold_the_answers(data: ReportData, tmp_path: Path) -> None:
    write(data, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## Bytes and speed" in text
    assert "Of the pruned variants zpruner 50 % loses least" in text
    assert "| zpruner 50 % | packed |" in text


def test_quantised_and_untouched_models(tmp_path: Path) -> None:
    """Sparsity 0 with `quantize` is an unpruned model; without, it is the dense model again."""
    quantize = {"name": "gptq", "settings": {"bits": 4, "group": 32}}
    methods = {"dense_int4": {"score": "magnitude", "quantize": quantize}, "wanda": METHODS["wanda"]}
    patterns = {"s0": "0.0", "s50": "0.5"}
    data = read(make_tree(tmp_path, methods, patterns), methods, patterns)
    found = named(data)
    assert [[s.variant.spec.name for s in ranking.standings] for ranking in Report.of(data).rankings] == [
        ["dense_int4-s0"],
        ["wanda-s50", "dense_int4-s50"],
    ]
    assert list(found) == ["dense", "dense_int4-s0", "dense_int4-s50", "wanda-s50"]
    assert [offer.kind for offer in found.values()] == ["dense", "int4", "pruned, int4", "pruned"]
    assert [offer.label for offer in found.values()] == ["dense", "dense_int4", "dense_int4 50 %", "wanda 50 %"]


def test_what_no_longer_predicts_is_told(tmp_path: Path) -> None:
    tree = make_full_tree(tmp_path)
    edit(tree / "evaluation/magnitude/s60.json", verdict="out of range: 9 nats per token")
    report = Report.of(read(tree))
    found = named(report.data)
    assert [name for name, offer in found.items() if not offer.predicts] == ["magnitude-s60"]
    assert "No longer predicting, and so no answer: magnitude 60 %." in offers.figure(report).body
