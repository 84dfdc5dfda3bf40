"""The nightly flow: sources refreshed, results compared, a worse one reported every night until accepted."""

from __future__ import annotations

import json
import math

import pytest
from toys import Toy

from flows.nightly import BASELINE, WorseResultError, compare, nightly

pytestmark = pytest.mark.usefixtures("quick", "worker")


def test_a_worse_result_fails_until_it_is_accepted(toy: Toy) -> None:
    assert nightly(str(toy.root), refresh=["base"]) == {"last": 51.0}
    assert nightly(str(toy.root), refresh=["base"]) == {"last": 51.0}
    assert toy.runs().count("base") == 2  # refreshed; the same bytes came, so nothing else ran
    assert len(toy.runs()) == 6
    toy.change("part", "p0", value=12345)
    for _ in range(2):
        with pytest.raises(WorseResultError, match=r"perplexity for last \(51 -> 55\).*delete"):
            nightly(str(toy.root), margin=0.05)
    assert nightly(str(toy.root), margin=0.1) == {"last": 55.0}
    assert json.loads((toy.root / BASELINE).read_text()) == {"last": 55.0}


def test_comparison() -> None:
    before = {"a": 10.0, "b": 10.0, "c": 10.0, "gone": 1.0}
    assert compare(before, {"a": 10.2, "b": 10.21, "c": math.nan, "new": 99.0}, 0.02) == [
        "b (10 -> 10.21)",
        "c (10 -> nan)",
    ]
