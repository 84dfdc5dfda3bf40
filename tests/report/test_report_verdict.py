"""Sentences that follow from offers, and change when the numbers do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from some_offers import DENSE, PLAIN, PRUNED, offer

from zpruner.errors import InvalidSettingError
from zpruner.report.verdict import Advice, advise


def answers(found: Advice) -> list[str]:
    return list(found.words.values())


def test_without_plain_quantisation_the_verdict_says_what_is_not_known() -> None:
    found = advise([DENSE, *PRUNED], increase=0.1, megabytes=120)
    assert list(found.words) == [
        "Smallest at no worse than 22.00 (+10.0 %)",
        "Best at no more than 120.0 MB",
        "Fastest at no worse than 22.00 (+10.0 %)",
    ]
    assert answers(found) == [
        "mild packed (150.0 MB, 0.75 x dense; perplexity 21.50, +7.5 %).",
        "half packed (110.0 MB, 0.55 x dense; perplexity 26.00, +30.0 %).",
        "mild packed (150.0 MB, 0.75 x dense; perplexity 21.50, +7.5 %): 26.0 tokens/s, 1.30 x dense by torch and "
        "1.04 x the same weights with their zeros by the same kernels.",
    ]
    assert found.verdict.startswith("Of the pruned variants mild loses least: +7.5 % at 0.75 x the bytes.")
    assert "unknown: no quantised dense model was evaluated" in found.verdict


def test_plain_quantisation_is_named_where_it_wins() -> None:
    found = advise([DENSE, *PRUNED, *PLAIN], perplexity=22.0, megabytes=100)
    better = "Plain int8 is better here than pruning:"
    assert answers(found)[0].endswith(
        f"{better} the smallest pruned one is mild packed (150.0 MB, 0.75 x dense; perplexity 21.50, +7.5 %)."
    )
    assert answers(found)[1].startswith("dense_int4 (60.0 MB")
    assert "Plain int4 is better here than pruning: the best pruned one is hard" in answers(found)[1]
    assert better in answers(found)[2]
    assert found.verdict == (
        "Plain int8 is better here than pruning: dense_int8 takes 105.0 MB at 20.10, where mild takes 150.0 MB at "
        "21.50, and an unpruned model beats every pruned one in bytes and perplexity."
    )


def test_pruning_is_worth_it_where_no_plain_model_is_as_small_and_as_good() -> None:
    both = offer("half_int4", 21.9, 50.0, bits=4)
    found = advise([DENSE, *PRUNED, *PLAIN, both])
    assert found.verdict == (
        "No plain quantised model is as small and as good as half_int4 (50.0 MB, 21.90): there pruning gives what "
        "quantising does not. The other 3 pruned are beaten by plain quantisation."
    )
    plain = "dense_int8 (105.0 MB, 0.53 x dense; perplexity 20.10, +0.5 %)"
    assert answers(found)[0].endswith(f"The smallest unpruned one is {plain}.")


def test_what_no_longer_predicts_is_no_answer() -> None:
    broken = replace(PRUNED[2], predicts=False)
    found = advise([DENSE, broken, *PLAIN], megabytes=95)
    assert answers(found)[1].startswith("dense_int4 (60.0 MB")
    assert "hard" not in " ".join(answers(found))
    assert found.verdict == "No pruned variant that still predicts takes fewer bytes than the dense model."
    assert "hard" in advise([DENSE, PRUNED[2]]).verdict


def test_nothing_good_enough_and_nothing_small_enough() -> None:
    found = answers(advise([DENSE, *PRUNED], perplexity=20.5, megabytes=10))
    nearest = "Nearest is mild packed (150.0 MB, 0.75 x dense; perplexity 21.50, +7.5 %)."
    least = "hard packed (90.0 MB, 0.45 x dense; perplexity 80.00, +300.0 %)"
    assert found[:2] == [f"only the dense model, 200.0 MB. {nearest}", f"nothing; the smallest is {least}."]
    found = answers(advise([DENSE, *PRUNED], perplexity=19.0))
    assert found[0] == f"nothing, not even the dense model (20.00). {nearest}"
    unmeasured = [replace(offer, decode=None) for offer in (DENSE, *PRUNED)]
    assert answers(advise(unmeasured))[2].startswith("unknown: no decode speed was measured")
    assert advise([DENSE]).verdict == "No pruned variant that still predicts takes fewer bytes than the dense model."


def test_noise_is_told() -> None:
    noisy = replace(PRUNED[0], losses=(2.4, 3.1, 3.7))
    assert "On 3 windows its perplexity is known to " in answers(advise([DENSE, noisy]))[0]
    blurred = replace(PLAIN[1], losses=(2.0, 3.9, 3.4))
    found = answers(advise([DENSE, PRUNED[1], blurred], megabytes=120))[1]
    assert found.endswith("3 windows are too few to tell the two apart.")


def test_computed_bytes_are_marked() -> None:
    assert "(150.0 MB, computed, 0.75 x dense;" in answers(advise([DENSE, replace(PRUNED[0], computed=True)]))[0]


def test_two_limits_of_one_thing_are_refused() -> None:
    with pytest.raises(InvalidSettingError, match="one of them"):
        advise([DENSE], perplexity=20.0, increase=0.1)
