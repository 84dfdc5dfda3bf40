"""Intervals over windows: Student's quantile, coverage of few windows, pairing, and when there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.artifacts.results import Interval
from zpruner.evaluate import mean_interval, perplexity_interval, ratio_interval
from zpruner.evaluate.intervals import student_quantile


# Any table of Student's distribution, two-sided, 5 %.
@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (6, 2.4469), (30, 2.0423), (499, 1.9647)],
)
def test_students_quantile(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_an_interval_worked_out_by_hand() -> None:
    # Mean 3, standard deviation 1 (divisor n - 1), n = 3: half-width 4.302653 / sqrt(3).
    half = 4.302653 / math.sqrt(3)
    found = mean_interval([2.0, 3.0, 4.0])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert perplexity_interval([2.0, 3.0, 4.0]) == Interval(low=math.exp(found.low), high=math.exp(found.high))
    assert mean_interval([0.0, 1.0, 1.0], low=0.0, high=1.0) == Interval(low=0.0, high=1.0)


def test_six_windows_hold_the_truth_where_a_percentile_bootstrap_does_not() -> None:
    rng, trials, held, drawn = np.random.default_rng(2), 1500, 0, 0
    for _ in range(trials):
        losses = 3.0 + 0.35 * rng.standard_normal(6)
        found = mean_interval(losses.tolist())
        assert found is not None
        held += found.low <= 3.0 <= found.high
        low, high = np.percentile(losses[rng.integers(6, size=(400, 6))].mean(axis=1), [2.5, 97.5])
        drawn += low <= 3.0 <= high
    assert held / trials == pytest.approx(0.95, abs=0.015)
    assert drawn / trials < 0.90


def test_ratios_are_paired() -> None:
    hard = np.random.default_rng(3).standard_normal(64)
    harm = 0.02 + 0.001 * np.random.default_rng(4).standard_normal(64)
    dense, pruned = (3 + hard).tolist(), (3 + hard + harm).tolist()
    ratio, alone = ratio_interval(pruned, dense), perplexity_interval(pruned)
    assert ratio is not None
    assert alone is not None
    assert ratio.low < math.exp(harm.mean()) < ratio.high
    assert ratio.high / ratio.low < 1.001, "the spread of the windows themselves must cancel out"
    assert alone.high / alone.low > 1.3
    assert ratio_interval([math.inf, 3.0], [math.inf, 2.0]) is None


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, math.nan], [math.inf, 1.0], [900.0, 901.0]])
def test_no_interval_where_none_is_known(losses: list[float]) -> None:
    assert perplexity_interval(losses) is None


@given(st.lists(st.floats(0.1, 9.0), min_size=2, max_size=12))
@settings(max_examples=40, deadline=None)
def test_the_mean_lies_inside_and_no_narrower_interval_with_more_spread(losses: list[float]) -> None:
    found, wider = mean_interval(losses), mean_interval([2 * loss for loss in losses])
    assert found is not None
    assert wider is not None
    assert found.low - 1e-9 <= float(np.mean(losses)) <= found.high + 1e-9
    assert wider.high - wider.low == pytest.approx(2 * (found.high - found.low), abs=1e-9)
