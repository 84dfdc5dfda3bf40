"""Columns in an order in which N:M keeps more."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from zpruner.masks import arrange_columns, kept_sum, select
from zpruner.masks._arrange import _gains
from zpruner.types import ComparisonGroup, SparsityPattern

TWO_OF_FOUR = SparsityPattern(kept=2, group_size=4)


def scores_of(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    loud = torch.randn(columns, generator=generator).exp()
    return torch.randn(rows, columns, generator=generator).square() * loud


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(2, 4), (1, 4), (3, 4), (4, 8), (1, 2)]), st.integers(1, 6), st.integers(1, 9), st.integers(0, 9)
)
def test_a_permutation_that_keeps_no_less(shape, groups, rows, seed):
    pattern = SparsityPattern(kept=shape[0], group_size=shape[1])
    scores = scores_of(rows, groups * shape[1], seed)
    order = arrange_columns(scores, pattern)
    assert sorted(order.tolist()) == list(range(scores.shape[1]))
    kept = select(scores[:, order].contiguous(), pattern, ComparisonGroup.ROW)
    assert float(scores[:, order][kept].sum()) >= kept_sum(scores, pattern) * (1 - 1e-5)
    assert kept_sum(scores[:, order], pattern) == pytest.approx(float(scores[:, order][kept].sum()), rel=1e-5)


def test_near_the_best_of_all_ways_to_share_out_eight_columns():
    for seed in range(5):
        scores = scores_of(6, 8, seed)
        ways = [(0, *rest) for rest in combinations(range(1, 8), 3)]
        every = [kept_sum(scores[:, [*way, *(c for c in range(8) if c not in way)]], TWO_OF_FOUR) for way in ways]
        found = kept_sum(scores[:, arrange_columns(scores, TWO_OF_FOUR, rounds=4)], TWO_OF_FOUR)
        assert sum(found >= way * (1 - 1e-9) for way in every) >= 0.8 * len(every)
        assert found <= max(every) * (1 + 1e-6)


def test_loud_columns_that_lie_together_are_parted():
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 1.0, 1.0, 1.0, 1.0]])
    order = arrange_columns(scores, TWO_OF_FOUR)
    assert kept_sum(scores[:, order], TWO_OF_FOUR) == 30.0


def assigned(scores: np.ndarray, kept: int, size: int) -> list[list[int]]:
    """RIA's orders, by its definition: dealt out back and forth, then of every slot the best of all assignments.

    There are several where assignments are equally good.
    """
    columns = scores.shape[1]
    loud = sorted(range(columns), key=lambda column: -scores[:, column].sum())
    runs = [loud[start : start + columns // size] for start in range(0, columns, columns // size)]
    found = [tuple(tuple(run[::-1] if number % 2 else run) for number, run in enumerate(runs))]

    def total(slots: tuple[tuple[int, ...], ...]) -> float:
        return sum(
            np.sort(scores[:, list(group)], axis=1)[:, size - kept :].sum() for group in zip(*slots, strict=True)
        )

    for slot in range(size):
        best = {}
        for known in found:
            ways = {(*known[:slot], way, *known[slot + 1 :]) for way in permutations(known[slot])}
            totals = {way: total(way) for way in ways}
            most = max(totals.values())
            best |= {way: value for way, value in totals.items() if value > most * (1 - 1e-6)}
        found = list(best)
        assume(len(found) <= 20)
    return [[column for group in zip(*slots, strict=True) for column in group] for slots in found]


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(2, 4), (1, 4), (1, 2), (2, 3)]), st.integers(2, 4), st.integers(3, 9), st.integers(0, 99))
def test_one_round_is_what_ria_defines(shape, groups, rows, seed):
    pattern = SparsityPattern(kept=shape[0], group_size=shape[1])
    scores = scores_of(rows, groups * shape[1], seed)
    found = kept_sum(scores[:, arrange_columns(scores, pattern, rounds=1)], pattern)
    plain = kept_sum(scores, pattern)
    expected = [max(kept_sum(scores[:, order], pattern), plain) for order in assigned(scores.double().numpy(), *shape)]
    assert min(abs(found - each) for each in expected) < 1e-5 * found


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_gains_are_what_is_kept_more(kept):
    scores, pattern = scores_of(7, 12, 3), SparsityPattern(kept=kept, group_size=4)
    others, candidates = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]]), torch.tensor([9, 10, 11])
    gains = _gains(scores, others, candidates, kept)
    for group in range(3):
        there = scores[:, others[:, group]]
        alone = float(there.topk(kept, dim=1).values.sum())
        for number, candidate in enumerate(candidates):
            whole = kept_sum(torch.cat([there, scores[:, [int(candidate)]]], dim=1), pattern)
            assert float(gains[group, number]) == pytest.approx(whole - alone, abs=1e-4)
