"""How many structures stay: one share for all that one number of a config counts, in steps and multiples."""

from __future__ import annotations

import pytest

from zpruner.errors import InvalidPatternError
from zpruner.patterns import StructuredPattern, StructureKind
from zpruner.structures import Coupling, Couplings


def coupling(name: str, count: int, step: int, size: str = "width") -> Coupling:
    return Coupling(StructureKind.NEURONS, name, 0, count, size, step, (), ())


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("neurons:0.25", {"experts": 20, "shared": 40}),  # of 24 in steps of 4: 18 lies between 16 and 20
        ("neurons:0.5", {"experts": 12, "shared": 24}),
        ("neurons:0.5 multiple:8", {"experts": 16, "shared": 32}),  # not 32 and 64, the multiple of the step
        ("neurons:0.3 multiple:3", {"experts": 12, "shared": 24}),  # 16.8: 12 and 24 are the multiples of both
    ],
)
def test_what_one_number_counts_keeps_one_share(pattern: str, kept: dict[str, int]) -> None:
    couplings = Couplings((coupling("experts", 24, 4), coupling("shared", 48, 8)))
    assert couplings.kept(StructuredPattern.parse(pattern)) == kept


def test_a_multiple_that_one_asks_for_holds_for_all() -> None:
    couplings = Couplings((coupling("wide", 64, 2), coupling("narrow", 32, 1), coupling("other", 60, 1, "its own")))
    found = couplings.kept(StructuredPattern.parse("neurons:0.2 multiple:8"))
    assert found == {"wide": 48, "narrow": 24, "other": 48}


def test_a_step_that_leaves_no_choice_is_told() -> None:
    with pytest.raises(InvalidPatternError, match=r"experts: got 24 neurons, of which 0\.05 in multiples of 4 is none"):
        Couplings((coupling("experts", 24, 4),)).kept(StructuredPattern.parse("neurons:0.05"))
    with pytest.raises(InvalidPatternError, match=r"in multiples of 64 is (all|none)"):
        Couplings((coupling("experts", 48, 4),)).kept(StructuredPattern.parse("neurons:0.5 multiple:64"))
