"""Bootstrap intervals: coverage, pairing, and when there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.evaluate import Bootstrap, Interval
from zpruner.evaluate.bootstrap import RESAMPLES


def test_a_normal_sample_gives_the_textbook_interval() -> None:
    losses = 3.0 + 0.4 * np.random.default_rng(1).standard_normal(400)
    found = Bootstrap([losses.tolist()]).perplexity(0)
    assert found is not None
    error = losses.std(ddof=1) / math.sqrt(400)
    low, high = math.exp(losses.mean() - 1.96 * error), math.exp(losses.mean() + 1.96 * error)
    assert found.low == pytest.approx(low, rel=0.005)
    assert found.high == pytest.approx(high, rel=0.005)


def test_the_mean_itself_has_one_too() -> None:
    shares = np.random.default_rng(5).random(300)
    found = Bootstrap([shares.tolist()]).mean(0)
    assert found is not None
    error = shares.std(ddof=1) / math.sqrt(300)
    assert found.low == pytest.approx(shares.mean() - 1.96 * error, abs=0.003)
    assert found.high == pytest.approx(shares.mean() + 1.96 * error, abs=0.003)


def test_most_intervals_hold_the_truth() -> None:
    rng, held = np.random.default_rng(2), 0
    for _ in range(60):
        interval = Bootstrap([(2.0 + 0.3 * rng.standard_normal(60)).tolist()]).perplexity(0)
        assert interval is not None
        held += interval.low <= math.exp(2.0) <= interval.high
    assert 50 <= held <= 60


def test_ratios_are_paired() -> None:
    hard = np.random.default_rng(3).standard_normal(64)
    harm = 0.02 + 0.001 * np.random.default_rng(4).standard_normal(64)
    found = Bootstrap([(3 + hard).tolist(), (3 + hard + harm).tolist()])
    ratio, alone = found.ratio(1, 0), found.perplexity(1)
    assert ratio is not None
    assert alone is not None
    assert ratio.low < math.exp(harm.mean()) < ratio.high
    assert ratio.high / ratio.low < 1.001, "the spread of the windows themselves must cancel out"
    assert alone.high / alone.low > 1.3


@pytest.mark.parametrize("losses", [[1.0], [1.0, math.nan], [math.inf, 1.0], [900.0, 901.0]])
def test_no_interval_where_none_is_known(losses: list[float]) -> None:
    assert Bootstrap([losses]).perplexity(0) is None


@given(st.lists(st.floats(0.1, 9.0), min_size=2, max_size=12))
@settings(max_examples=20, deadline=None)
def test_the_interval_lies_between_the_extremes_and_repeats(losses: list[float]) -> None:
    first, second = Bootstrap([losses]).perplexity(0), Bootstrap([losses]).perplexity(0)
    assert first == second
    assert isinstance(first, Interval)
    assert math.exp(min(losses)) * (1 - 1e-9) <= first.low <= first.high <= math.exp(max(losses)) * (1 + 1e-9)


def test_resamples_are_what_the_report_says() -> None:
    assert RESAMPLES == 2000
