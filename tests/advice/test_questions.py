"""Smallest, best, fastest."""

from __future__ import annotations

from some_offers import DENSE, PLAIN, PRUNED

from zpruner.advice import Answer, best, fastest, smallest


def labels(answer: Answer) -> tuple[str | None, ...]:
    named = (answer.winner, answer.pruned, answer.unpruned, answer.nearest)
    return tuple(None if offer is None else offer.label for offer in named)


def test_the_smallest_that_is_good_enough() -> None:
    assert labels(smallest([DENSE, *PRUNED], 22.0)) == ("mild", "mild", None, "half")
    assert labels(smallest([DENSE, *PRUNED], 21.0)) == ("dense", None, None, "mild")
    assert labels(smallest([DENSE, *PRUNED], 19.0)) == (None, None, None, "mild")
    assert labels(smallest([DENSE, *PRUNED, *PLAIN], 22.0)) == ("dense_int8", "mild", "dense_int8", "dense_int4")
    assert labels(smallest([DENSE, *PRUNED, *PLAIN], 100.0)) == ("dense_int4", "hard", "dense_int4", None)


def test_the_best_that_is_small_enough() -> None:
    assert labels(best([DENSE, *PRUNED], 120_000_000)) == ("half", "half", None, "mild")
    assert labels(best([DENSE, *PRUNED, *PLAIN], 109_999_999)) == ("dense_int8", "hard", "dense_int8", "half")
    assert labels(best([DENSE, *PRUNED], 10)) == (None, None, None, "hard")


def test_the_fastest_is_one_that_was_measured() -> None:
    assert labels(fastest([DENSE, *PRUNED], 100.0)) == ("half", "half", None, None)
    assert labels(fastest([DENSE, *PRUNED, *PLAIN], 25.0)) == ("dense_int8", "mild", "dense_int8", "half")
    assert labels(fastest([PRUNED[2]], 100.0)) == (None, None, None, None)
