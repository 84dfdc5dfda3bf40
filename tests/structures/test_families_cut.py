"""Every family: cutting what has no effect changes no logit; how many families can be cut."""

from __future__ import annotations

from functools import cache

import families
import pytest
from structure_cases import logits, silenced, some

from zpruner.patterns import StructureKind
from zpruner.structures import Couplings, cut, find_couplings

LEAST = {StructureKind.NEURONS: 60, StructureKind.GROUPS: 40, StructureKind.BLOCKS: 60, StructureKind.EXPERTS: 30}


@cache
def of_family(name: str) -> Couplings:
    return find_couplings(families.build(name))


@pytest.mark.slow
@pytest.mark.parametrize("family", families.ALL)
def test_cut_of_what_has_no_effect_changes_no_logit(family: str) -> None:
    model, couplings = families.build(family), of_family(family)
    for kind in StructureKind:
        if couplings.why_not(kind) is None:
            keep = some(couplings.of(kind))
            smaller = logits(cut(model, couplings, keep))
            if kind is not StructureKind.EXPERTS:  # those are avoided by a router, not silent
                wanted = logits(silenced(model, couplings, keep))
                assert (smaller - wanted).abs().max() <= 1e-5 * wanted.abs().max(), kind


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_most_families_can_be_cut() -> None:
    found = [of_family(family) for family in families.ALL]
    for kind, least in LEAST.items():
        assert sum(couplings.why_not(kind) is None for couplings in found) >= least, kind
