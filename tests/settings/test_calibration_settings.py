"""Calibration on several sources: how many windows each gives, and what is refused in one sentence."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import tiny
from hypothesis import assume, given
from hypothesis import strategies as st

from zpruner.errors import InvalidSettingError
from zpruner.settings.mixture import described, mixture_of, window_counts
from zpruner.settings.reading import check_params
from zpruner.settings.texts import CalibrationSettings

SELF: dict[str, Any] = {"source": "self"}


def calibration(*sources: Any, nsamples: int = 8) -> CalibrationSettings:
    return mixture_of({"source": list(sources), "nsamples": nsamples, "seqlen": 16}, "test", "source")


@given(st.lists(st.integers(1, 500), min_size=1, max_size=6), st.integers(1, 300))
def test_shares_are_kept_and_their_windows_add_up(parts: list[int], nsamples: int) -> None:
    total = sum(parts)
    exact = [Fraction(part, total) * nsamples for part in parts]
    assume(all(share >= 1 for share in exact))
    sources = [{"source": f"text{index}", "share": part / total} for index, part in enumerate(parts)]
    counts = window_counts(calibration(*sources, nsamples=nsamples))
    assert sum(counts) == nsamples
    assert all(abs(count - share) < 1 for count, share in zip(counts, exact, strict=True))
    # No source with a larger remainder was rounded down where one with a smaller was rounded up.
    up = [share - int(share) for count, share in zip(counts, exact, strict=True) if count > share]
    down = [share - int(share) for count, share in zip(counts, exact, strict=True) if count < share]
    assert not (up and down) or min(up) >= max(down) - Fraction(1, 10**9)


def test_how_many_windows() -> None:
    assert window_counts(calibration("a", SELF, nsamples=7)) == (4, 3)
    assert window_counts(calibration("a", "b", "c", nsamples=8)) == (3, 3, 2)
    # In floating point 0.29 of 100 is less than 29.
    shares = ({"source": "a", "share": 0.29}, {"source": "b", "share": 0.71})
    assert window_counts(calibration(*shares, nsamples=100)) == (29, 71)
    thirds = [{"source": name, "share": share} for name, share in (("a", 0.333), ("b", 0.333), ("c", 0.334))]
    assert window_counts(calibration(*thirds, nsamples=32)) == (11, 10, 11)
    assert window_counts(CalibrationSettings(source="a", nsamples=5, seqlen=16)) == (5,)


HALF = {"source": "a.txt", "share": 0.5}
REFUSED: dict[str, tuple[Any, str]] = {
    "none": ([], r"calibration\.source: got \[\], expected a source, or a list of them"),
    "a number": (3, r"calibration\.source: got 3, expected a source, or a list of them"),
    "a number in it": ([3], r"calibration\.source\.0: got 3, expected a source, or a mapping with one"),
    "no source": ([{"share": 1}], r"no 'calibration\.source\.0\.source', expected a value"),
    "unknown key": ([{**HALF, "shar": 1}], r"unknown key 'calibration\.source\.0\.shar'.* Did you mean 'share'"),
    "too much": ([HALF, {**SELF, "share": 0.6}], r"calibration\.source: got shares that sum to 1\.1, expected 1\. "),
    "too little": ([HALF, {**SELF, "share": 0.49}], r"got shares that sum to 0\.99, expected 1"),
    "not a number": ([{**HALF, "share": float("nan")}, SELF], r"source\.0\.share: got nan, expected a finite number"),
    "negative": ([{**HALF, "share": -0.5}, SELF], r"source\.0\.share: got -0\.5, expected greater than 0"),
    "zero": ([{**HALF, "share": 0}, SELF], r"source\.0\.share: got 0, expected greater than 0"),
    "some": ([HALF, SELF], r"source\.1: got no share beside shares of others, expected a share for every source"),
    "no window": (
        [{**HALF, "share": 0.99}, {**SELF, "share": 0.01}],
        r"source\.1: got no window of 6 for a share of 0\.01, expected at least one\. Raise calibration\.nsamples",
    ),
    "too many": ([f"{n}.txt" for n in range(7)], r"source\.6: got no window of 6, expected at least one"),
    "twice": (["a.txt", "./a.txt"], r"source\.1: got part \[0\.0, 1\.0\] of './a\.txt', which source\.0 reads"),
    "overlapping": (
        [{"source": "a.txt", "part": [0, 0.6]}, {"source": "a.txt", "part": [0.5, 1]}],
        r"source\.1: got part \[0\.5, 1\.0\] of 'a\.txt', which source\.0 reads with part \[0\.0, 0\.6\], too",
    ),
    "of one hash": (
        [{"source": "a.txt", "sha256": "0" * 64}, {"source": "b.txt", "sha256": "0" * 64}],
        r"source\.1: got part .*'b\.txt', which source\.0 reads",
    ),
    "self twice": (["self", {**SELF, "prompt": "A"}], r"source\.1: got 'self', which source\.0 reads, too"),
    "self with a part": ([{**SELF, "part": [0, 0.5]}], r"source\.0\.part: got part for text that the model writes"),
    "a hot text": (["a.txt", {"source": "b.txt", "temperature": 1.0}], r"source\.1\.temperature: got temperature for"),
    "cold": ([{**SELF, "temperature": 0}], r"source\.0\.temperature: got 0, expected greater than 0"),
    "nothing left": ([{**SELF, "drop": 1}], r"source\.0\.drop: got 1, expected less than 1"),
    "no nucleus": ([{**SELF, "top_p": 0}], r"source\.0\.top_p: got 0, expected greater than 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_for_a_mixture_that_is_none(name: str) -> None:
    source, message = REFUSED[name]
    given = {"source": source, "nsamples": 6, "seqlen": 32}
    with pytest.raises(InvalidSettingError, match=message) as raised:
        check_params({**tiny.PARAMS, "calibration": given}, "params.yaml")
    assert str(raised.value).startswith("params.yaml: ")
    assert str(raised.value).count(". ") <= 1


@pytest.mark.parametrize(("key", "value"), [("sha256", "0" * 64), ("part", [0, 0.5]), ("temperature", 1.0)])
def test_what_belongs_into_an_entry_does_not_stand_beside_the_list(key: str, value: Any) -> None:
    with pytest.raises(InvalidSettingError, match=rf"^{key}: got it beside a list of sources, expected it"):
        mixture_of({"source": ["a", "self"], "nsamples": 6, "seqlen": 8, key: value}, "test", "source")


def test_every_source_is_kept_apart_from_search_and_evaluation() -> None:
    text = {"source": "source/text.txt", "documents": "lines"}
    several = [SELF, {"source": "b.txt"}, {**text, "part": [0.0, 0.5]}]
    params = {**tiny.PARAMS, "calibration": {"source": several, "nsamples": 6, "seqlen": 32}}
    params["search"] = {"text": {**text, "part": [0.25, 0.5], "seqlen": 16}, "sparsities": [0.5]}
    with pytest.raises(InvalidSettingError, match=r"search\.text\.part: .* overlaps with calibration\.source\.2\.part"):
        check_params(params, "params.yaml")
    params["search"] = {"text": {**text, "part": [0.5, 1.0], "seqlen": 16}, "sparsities": [0.5]}
    with pytest.raises(InvalidSettingError, match=r"overlaps with evaluation\.perplexity\.part"):
        check_params(params, "params.yaml")


def test_one_source_is_written_down_as_before() -> None:
    one = CalibrationSettings.model_validate(tiny.PARAMS["calibration"])
    assert not one.mixed
    assert described(one) == one.model_dump(mode="json")
    assert one.windows_settings() == (
        '{"documents": "lines", "nsamples": 6, "part": [0.0, 0.5], "seqlen": 32, "source": "source/text.txt"}'
    )


def test_several_are_shown_under_their_numbers() -> None:
    found = described(calibration({**HALF, "part": [0, 0.5]}, {**SELF, "share": 0.5, "temperature": 1}))
    assert found["source"] == {
        "1": {"source": "a.txt", "part": [0.0, 0.5], "share": 0.5, "windows": 4},
        "2": {"source": "self", "temperature": 1.0, "top_p": 0.95, "drop": 0.2, "share": 0.5, "windows": 4},
    }
    assert "part" not in found
    assert found["nsamples"] == 8
