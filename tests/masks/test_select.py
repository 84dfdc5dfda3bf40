from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zpruner.errors import InvalidPatternError, InvalidSettingError, NonFiniteError, ShapeMismatchError
from zpruner.masks import _select, pruned_count, select, select_each
from zpruner.types import ComparisonGroup, SparsityPattern

ROW, LAYER = ComparisonGroup.ROW, ComparisonGroup.LAYER

FEW_VALUES = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0])
ANY_VALUE = st.floats(-(2.0**100), 2.0**100, width=32)


def scores(shape):
    """Matrices full of ties, signed zeros included, and matrices of arbitrary values."""
    return hnp.arrays(np.float32, shape, elements=FEW_VALUES) | hnp.arrays(np.float32, shape, elements=ANY_VALUE)


def naive(score, group_width, pruned):
    """The `pruned` lowest of every run of `group_width` scores go, by a full stable sort."""
    keep = np.ones(score.size, dtype=bool).reshape(-1, group_width)
    for row, values in zip(keep, score.astype(np.float64).reshape(-1, group_width), strict=True):
        row[np.argsort(values, kind="stable")[:pruned]] = False
    return keep.reshape(score.shape)


def keep_of(score, pattern, group):
    return select(torch.from_numpy(score), SparsityPattern.parse(pattern), group)


@given(scores(st.tuples(st.integers(1, 6), st.integers(1, 30))), st.integers(0, 99), st.sampled_from([ROW, LAYER]))
def test_ratio_equals_a_stable_sort(score, percent, group):
    width = score.shape[1] if group is ROW else score.size
    pruned = width * percent // 100
    keep = keep_of(score, percent / 100, group)
    assert keep.dtype == torch.bool
    assert np.array_equal(keep.numpy(), naive(score, width, pruned))
    for values, kept in zip(score.reshape(-1, width), keep.numpy().reshape(-1, width), strict=True):
        assert (~kept).sum() == pruned
        assert not pruned or values[kept].min() >= values[~kept].max()


@given(st.data(), st.integers(2, 20), st.sampled_from([ROW, LAYER]))
def test_n_of_m_equals_a_stable_sort_of_each_group(data, m, group):
    n = data.draw(st.integers(1, m - 1))
    score = data.draw(scores((data.draw(st.integers(1, 4)), m * data.draw(st.integers(1, 3)))))
    keep = keep_of(score, f"{n}:{m}", group).numpy()
    assert (keep.reshape(-1, m).sum(axis=1) == n).all()
    assert np.array_equal(keep, naive(score, m, m - n))


@given(scores(st.tuples(st.integers(1, 4), st.sampled_from([4, 8, 20]))), st.sampled_from([ROW, LAYER]))
def test_many_patterns_at_once_give_what_each_gives_alone(score, group):
    patterns = [SparsityPattern.parse(p) for p in (0.5, "2:4", 0.0, 0.75, 0.5)]
    found = select_each(torch.from_numpy(score), patterns, group)
    for pattern, keep in zip(patterns, found, strict=True):
        assert torch.equal(keep, select(torch.from_numpy(score), pattern, group))


@given(st.integers(1, 10**8), st.integers(0, 9999))
def test_count_is_the_floor_of_the_decimal_product(size, digits):
    exact = Fraction(digits, 10_000)
    assert pruned_count(size, digits / 10_000) == floor(size * exact)


@pytest.mark.parametrize(
    ("size", "ratio", "count"),
    [(10, 0.7, 7), (100, 0.29, 29), (100, 0.57, 57), (7, 0.5, 3), (9, 0.0, 0), (10, 1 - 2**-53, 9), (1, 0.99, 0)],
)
def test_count_where_floats_mislead(size, ratio, count):
    assert pruned_count(size, ratio) == count


def test_row_and_layer_groups_differ():
    score = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.float32)
    assert keep_of(score, 0.5, ROW).tolist() == [[False, False, True, True]] * 2
    assert keep_of(score, 0.5, LAYER).tolist() == [[False] * 4, [True] * 4]


def test_n_of_n_m_is_the_number_kept():
    score = np.array([[1, 4, 3, 2, 9, 8, 7, 6]], dtype=np.float32)
    assert keep_of(score, "1:4", ROW).tolist() == [[False, True, False, False, True, False, False, False]]
    assert keep_of(score, "3:4", ROW).tolist() == [[False, True, True, True, True, True, True, False]]


def test_of_equal_scores_the_lower_index_goes_first():
    equal = np.zeros((2, 4), dtype=np.float32)
    assert keep_of(equal, 0.25, ROW).tolist() == [[False, True, True, True]] * 2
    assert keep_of(equal, 0.625, LAYER).tolist() == [[False] * 4, [False, True, True, True]]
    assert keep_of(equal, "1:4", LAYER).tolist() == [[False, False, False, True]] * 2
    assert keep_of(equal.reshape(1, 8) * -1, "1:8", ROW).tolist() == [[False] * 7 + [True]]
    signed = np.array([[0.0, -0.0, 0.0, -0.0]], dtype=np.float32)
    assert keep_of(signed, 0.5, ROW).tolist() == [[False, False, True, True]]
    assert keep_of(signed, "2:4", ROW).tolist() == [[False, False, True, True]]


def test_zero_sparsity_keeps_everything():
    assert keep_of(np.zeros((3, 5), dtype=np.float32), 0.0, LAYER).all()


def test_scores_are_left_alone_whatever_their_layout():
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    for score in (base.t(), base[:, ::2], base.clone().requires_grad_()):
        before = score.clone()
        for pattern in (0.5, "1:2"):
            for group in ComparisonGroup:
                keep = select(score, SparsityPattern.parse(pattern), group)
                plain = select(score.detach().contiguous(), SparsityPattern.parse(pattern), group)
                assert torch.equal(keep, plain)
                assert keep.shape == score.shape
        assert torch.equal(score, before)


def everything(score):
    patterns = [SparsityPattern.parse(p) for p in (0.5, 0.37, "2:4", "4:8", "8:16")]
    return [select(score, p, g).cpu() for p in patterns for g in ComparisonGroup]


@pytest.fixture
def tied_score():
    """Large enough for torch to use several threads, with ties at every threshold."""
    return torch.randint(-40, 40, (256, 512), generator=torch.Generator().manual_seed(2)).float()


def test_mask_does_not_depend_on_the_number_of_threads(tied_score):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = everything(tied_score)
        torch.set_num_threads(3)
        three = everything(tied_score)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@given(scores(st.tuples(st.integers(1, 3), st.integers(1, 40))), st.data())
def test_the_kth_smallest_of_long_rows_is_that_of_a_sort(score, data):
    k = data.draw(st.integers(1, score.shape[1]))
    found = _select._kth_of_long_rows(torch.from_numpy(score), k).numpy()
    assert np.array_equal(found, np.sort(score, axis=1)[:, k - 1 : k])


@pytest.mark.gpu
def test_mask_does_not_depend_on_the_device(tied_score, accelerator, monkeypatch):
    monkeypatch.setattr(_select, "_PAIRWISE_AT_ONCE", 7)
    there = everything(tied_score.to(accelerator))
    assert all(torch.equal(a, b) for a, b in zip(everything(tied_score), there, strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("pattern", [0.0, 0.5, "2:4"])
def test_a_score_that_is_not_finite_is_refused_with_the_layer_named(bad, pattern):
    score = torch.ones(3, 4)
    score[1, 2] = bad
    with pytest.raises(NonFiniteError, match=r"blocks\.3\.up: got NaN or infinity"):
        select(score, SparsityPattern.parse(pattern), ROW, "blocks.3.up")


def test_a_width_that_m_does_not_divide_is_refused_with_the_layer_named():
    with pytest.raises(InvalidPatternError, match=r"blocks\.3\.up: got 6 inputs for the pattern 2:4"):
        select(torch.ones(2, 6), SparsityPattern.parse("2:4"), ROW, "blocks.3.up")


@pytest.mark.parametrize("score", [torch.ones(4), torch.ones(2, 4).double(), torch.ones(0, 4), torch.ones(1, 2, 4)])
def test_what_is_no_float32_matrix_is_refused(score):
    with pytest.raises(ShapeMismatchError, match="expected float32 of shape"):
        select(score, SparsityPattern.parse(0.5), ROW)


def test_a_group_may_be_given_by_name_and_only_by_its_name():
    score = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    half = SparsityPattern.parse(0.5)
    assert torch.equal(select(score, half, "row"), select(score, half, ROW))
    assert not torch.equal(select(score, half, "row"), select(score, half, "layer"))
    with pytest.raises(InvalidSettingError, match=r"got 'rows', expected row or layer\. Did you mean 'row'"):
        select(score, half, "rows")
