"""Intervals, ranking and formatted numbers, against independent arithmetic."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_tree import METHODS, edit, make_tree, read

from zpruner.artifacts.results import CHOSEN, Interval, Layer
from zpruner.report import format as fmt
from zpruner.report.axes import log_ticks
from zpruner.report.figures import heat
from zpruner.report.figures.blocks import by_block
from zpruner.report.ranking import Report


def test_best_and_verdict_follow_perplexity_and_noise(tmp_path: Path) -> None:
    two = {name: METHODS[name] for name in ("wanda", "zpruner")}
    tree = make_tree(tmp_path, two, {"s50": "0.5"}, windows=40)
    report = Report.of(read(tree, two, {"s50": "0.5"}))
    (ranking,) = report.rankings
    assert [standing.best for standing in report.standings] == [False, True]
    assert [standing.variant.spec.name for standing in ranking.standings] == ["zpruner-s50", "wanda-s50"]
    assert ranking.lead is not None
    assert ranking.lead.low > 1
    assert "larger than the noise" in ranking.verdict
    # The same losses with opposite swings: a difference that the windows cannot carry.
    dense = list(read(tree, two, {"s50": "0.5"}).dense.details.window_losses)
    for sign, method in ((1, "wanda"), (-1, "zpruner")):
        swung = [loss + 0.2 + sign * (0.3 if i % 2 else -0.3) for i, loss in enumerate(dense)]
        edit(tree / f"evaluation/{method}/s50.layers.json", window_losses=swung)
    (ranking,) = Report.of(read(tree, two, {"s50": "0.5"})).rankings
    assert ranking.lead is not None
    assert ranking.lead.low < 1 < ranking.lead.high
    assert "40 windows are too few" in ranking.verdict


def test_a_single_variant_is_not_called_best(tmp_path: Path) -> None:
    one = {"wanda": METHODS["wanda"]}
    report = Report.of(read(make_tree(tmp_path, one), one))
    assert not any(standing.best for standing in report.standings)
    assert all(ranking.verdict == "" for ranking in report.rankings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fmt.perplexity(29.204), "29.20"),
        (fmt.perplexity(1234.56), "1,234.6"),
        (fmt.perplexity(98765.4), "98,765"),
        (fmt.perplexity(2.5e9), "2.50e+09"),
        (fmt.perplexity(math.nan), "NaN"),
        (fmt.perplexity(math.inf), "inf"),
        (fmt.percent(0.49997), "50.00 %"),
        (fmt.change(1.134), "+13.4 %"),
        (fmt.change(0.971), "-2.9 %"),
        (fmt.change(14.5), "+1,350 %"),
        (fmt.change(3e8), "+3.0e+10 %"),
        (fmt.change(math.inf), "inf"),
        (fmt.change(None), "-"),
        (fmt.interval(Interval(low=0.99, high=1.159), fmt.change), "-1.0 to +15.9 %"),
        (fmt.error(0.38), "0.380"),
        (fmt.error(1.5e-6), "1.50e-06"),
        (fmt.seconds(1234.5), "1,234"),
        (fmt.memory(3 * 2**29), "1.50 GiB"),
        (fmt.memory(5 * 2**20), "5 MiB"),
        (fmt.typeset("-2.9 %"), "−2.9\u202f%"),
        (fmt.typeset("-1.0 to -15.9 %"), "−1.0 to −15.9\u202f%"),
        (fmt.typeset("1.50e-06"), "1.50e−6"),
        (fmt.typeset("2.50e+09"), "2.50e9"),
        (fmt.typeset("inf"), "∞"),
        (fmt.typeset("-"), "–"),
    ],
)
def test_format(text: str, expected: str) -> None:
    assert text == expected


def test_settings_are_flattened_and_empty_ones_left_out() -> None:
    nested = {"a": {"b": 1, "c": None}, "d": "", "e": [1, 2], "f": True, "g": "x"}
    assert fmt.flat(nested) == {"a.b": "1", "e": "[1, 2]", "f": "true", "g": "x"}


def test_block_sparsity_weighs_by_size_and_error_does_not() -> None:
    layers = tuple(
        Layer(layer=name, block=block, kind=name, weights=weights, sparsity=sparsity, layer_error=error)
        for name, block, weights, sparsity, error in (
            ("x", 1, 300, 0.2, 0.1),
            ("y", 1, 100, 0.6, 0.5),
            ("z", 0, 7, 0, 0),
        )
    )
    assert by_block(layers) == {0: (0.0, 0.0), 1: (pytest.approx(0.3), pytest.approx(0.3))}


@given(st.floats(1e-6, 1e6), st.floats(1.5, 1e6))
def test_log_ticks_lie_inside_and_rise(low: float, factor: float) -> None:
    ticks = log_ticks(low, low * factor)
    assert ticks == sorted(set(ticks))
    assert all(low <= tick <= low * factor for tick in ticks)
    assert len(ticks) >= (4 if factor > 4 else 1)


def test_heat_maps_share_a_scale_of_ranks_and_gather_experts(tmp_path: Path) -> None:
    two = {name: METHODS[name] for name in ("magnitude", "wanda")}
    tree = make_tree(tmp_path, two, {"s50": "0.5"}, blocks=3)
    base = {"block": 0, "weights": 10, "sparsity": 0.5}
    experts = [
        base | {"layer": f"m.{i}", "kind": f"mlp.experts.{i}.down_proj", "layer_error": e}
        for i, e in enumerate([90.0, 30.0])
    ]
    edit(tree / "evaluation/magnitude/s50.layers.json", layers=experts)
    report = Report.of(read(tree, two, {"s50": "0.5"}))
    figure = heat.layer_error(report)
    assert figure is not None
    first, second = figure.body.split("<table")[1:]
    assert '<th scope="row">mlp.experts.*.down_proj</th><td class="h9">60.0</td>' in first
    # An outlier of 60 beside errors of a few hundredths: every shade is still used.
    steps = [int(step) for step in re.findall(r'<td class="h(\d)">', second)]
    assert len(steps) == 21
    assert set(steps) == set(range(10))
    assert heat.sparsity(report) is None, "every layer stands at 50 %"
    assert heat.shrinkage(report) is None, "no solver chose any"


@pytest.mark.parametrize("setting", CHOSEN)
def test_what_chose_itself_is_shown(setting: str, tmp_path: Path) -> None:
    two = {name: METHODS[name] for name in ("magnitude", "wanda")}
    tree = make_tree(tmp_path, two, {"s50": "0.5"}, blocks=3)
    base = {"weights": 10, "sparsity": 0.5, "layer_error": 0.1, "kind": "mlp.up"}
    chosen = [base | {"layer": f"m.{block}", "block": block, setting: 0.2 * 4**block} for block in range(3)]
    edit(tree / "evaluation/wanda/s50.layers.json", layers=chosen)
    figure = {"shrinkage": heat.shrinkage, "damping": heat.damping, "share": heat.share}[setting](
        Report.of(read(tree, two, {"s50": "0.5"}))
    )
    assert figure is not None
    assert figure.body.count("<table") == 1  # of the variant whose solver chose
    assert re.findall(r'<td class="h\d">([\d.]+)</td>', figure.body) == ["0.200", "0.800", "3.20"]
