"""What options of the command line stand for: patterns, compositions, and the calibration where none is given."""

from __future__ import annotations

import pytest
import tiny

from zpruner.cli._composition import composition_settings, pattern_of
from zpruner.cli._options import NEWS, NEWS_SHA256
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.settings.reading import read_params


def test_the_default_calibration_is_that_of_the_repository() -> None:
    settings = read_params(tiny.REPOSITORY / "params.yaml").calibration
    assert (settings.source, settings.sha256) == (NEWS, NEWS_SHA256)


@pytest.mark.parametrize(
    ("ratio", "kind", "expected"),
    [
        (None, "unstructured", "0.5"),
        (0.65, "unstructured", "0.65"),
        (0.3333333333, "unstructured", "0.3333333333"),
        (None, "2:4", "2:4"),
        (0.5, "2:4", "2:4"),
        (0.75, "1:4", "1:4"),
    ],
)
def test_pattern_of(ratio: float | None, kind: str, expected: str) -> None:
    assert pattern_of(ratio, kind) == expected


@pytest.mark.parametrize(("ratio", "kind"), [(0.25, "1:4"), (0.6, "2:4"), (None, "0.5")])
def test_a_ratio_that_n_m_does_not_have(ratio: float | None, kind: str) -> None:
    with pytest.raises(InvalidSettingError):
        pattern_of(ratio, kind)


def test_no_pattern_at_all() -> None:
    with pytest.raises(InvalidPatternError):
        pattern_of(None, "structured")


def test_options_change_a_preset() -> None:
    found = composition_settings("ria", "row", ["power=0.25"], None, "obs")
    assert found == {"score": "ria", "group": "row", "settings": {"power": 0.25}, "update": "obs"}
    assert composition_settings("sparsegpt", None, [], None, None) == {"score": "sparsegpt", "update": "obs"}


def test_quantize() -> None:
    assert composition_settings("wanda", None, [], None, None, "4")["quantize"] == {"bits": 4}
    found = composition_settings("best", None, [], None, None, "bits=3,group=row,rounding=nearest")
    assert found["quantize"] == {"bits": 3, "group": "row", "rounding": "nearest"}
    assert pattern_of(0.0, "unstructured", quantizes=True) == pattern_of(None, "unstructured", "0", True) == "0"
    with pytest.raises(InvalidPatternError, match="quantise with --quantize"):
        pattern_of(0.0, "unstructured")
    with pytest.raises(InvalidSettingError, match="bits=4,group=128"):
        composition_settings("wanda", None, [], None, None, "four")
