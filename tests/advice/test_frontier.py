"""Pareto-optimal offers, against every pair compared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from some_offers import DENSE, PLAIN, PRUNED, offer

from zpruner.advice import frontier
from zpruner.advice.frontier import dominates

FEW = st.integers(1, 6)


def disk(found: object) -> float:
    return found.disk  # type: ignore[attr-defined]


@given(st.lists(st.tuples(FEW, FEW), max_size=12))
def test_nothing_on_it_is_dominated_and_all_else_is(numbers: list[tuple[int, int]]) -> None:
    offers = [offer(str(i), float(perplexity), mb) for i, (perplexity, mb) in enumerate(numbers)]
    found = frontier(offers, disk)
    assert [o for o in found if any(dominates(other, o) for other in offers)] == []
    for left_out in (o for o in offers if o not in found):
        same = [o for o in found if (o.perplexity, o.disk) == (left_out.perplexity, left_out.disk)]
        assert same or any(dominates(o, left_out) for o in found)
    assert list(found) == sorted(found, key=disk)


def test_a_cost_that_is_unknown_leaves_an_offer_out() -> None:
    offers = [DENSE, *PRUNED, *PLAIN]
    found = frontier(offers, lambda o: None if o.decode is None else 1 / o.decode.over_dense)
    assert [o.label for o in found] == ["dense_int8", "dense"]
    assert [o.label for o in frontier(offers, disk)] == ["dense_int4", "dense_int8", "dense"]


def test_of_equal_offers_the_first_stays_and_equals_do_not_dominate() -> None:
    one, other = offer("one", 21.0, 100.0), offer("other", 21.0, 100.0)
    assert frontier([one, other], disk) == (one,)
    assert not dominates(one, other)
    assert dominates(one, offer("larger", 21.0, 101.0))
    assert not dominates(one, offer("better", 20.9, 101.0))


def test_an_offer_says_what_was_done() -> None:
    kinds = [o.kind for o in (DENSE, PRUNED[0], PLAIN[1], offer("both", 30.0, 50.0, bits=4))]
    assert kinds == ["dense", "pruned", "int4", "pruned, int4"]
    assert [DENSE.is_dense, PLAIN[0].is_dense, PRUNED[0].is_dense] == [True, False, False]


def test_a_model_that_no_longer_predicts_is_not_on_it() -> None:
    small = offer("small", 80.0, 10.0, predicts=False)
    assert frontier([DENSE, small], disk) == (DENSE,)
