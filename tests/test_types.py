import dataclasses

import pytest
import torch

from zpruner.errors import InvalidPatternError, MissingStatisticError, NonFiniteError, ShapeMismatchError
from zpruner.types import LayerStats, Mask, ScoreMatrix, SparsityPattern, Stat


@pytest.mark.parametrize(
    ("value", "sparsity", "text"),
    [(0, 0.0, "0"), (0.5, 0.5, "0.5"), ("0.5", 0.5, "0.5"), (" 0.625 ", 0.625, "0.625"), (0.999, 0.999, "0.999")],
)
def test_ratios(value, sparsity, text):
    pattern = SparsityPattern.parse(value)
    assert (pattern.is_nm, pattern.sparsity, str(pattern)) == (False, sparsity, text)
    assert (pattern.kept, pattern.group_size) == (None, None)


@pytest.mark.parametrize("ratio", [1 / 3, 0.3333333, 0.9999999, 1e-9, 0.1 + 0.2])
def test_a_ratio_as_text_is_that_ratio_again(ratio):
    assert SparsityPattern.parse(str(SparsityPattern(ratio=ratio))).ratio == ratio


@pytest.mark.parametrize(
    ("value", "kept", "size", "sparsity"),
    [("2:4", 2, 4, 0.5), (" 4:8 ", 4, 8, 0.5), ("1of4", 1, 4, 0.75), ("3:4", 3, 4, 0.25)],
)
def test_n_of_m(value, kept, size, sparsity):
    pattern = SparsityPattern.parse(value)
    assert (pattern.kept, pattern.group_size, pattern.sparsity, pattern.is_nm) == (kept, size, sparsity, True)
    assert str(pattern) == value.strip().replace("of", ":")


def test_a_pattern_that_became_a_number_is_told_how_to_survive():
    with pytest.raises(InvalidPatternError, match=r"got 124(\.0)?, .*in quotes, or as 2of4"):
        SparsityPattern.parse(124)  # 2:4 to a reader of YAML 1.1; 1:64 as well, so it cannot be read back


@pytest.mark.parametrize(
    "value",
    [
        *(1.0, 1, 1.5, -0.1, float("nan"), float("inf"), True, False),
        *(
            "1.0",
            "-0.5",
            "nan",
            "abc",
            "",
            "50%",
            "4:2",
            "2:2",
            "0:4",
            "0:0",
            "-1:4",
            "2:",
            ":4",
            "2:4:8",
            "2.0:4",
            "2/4",
        ),
    ],
)
def test_bad_patterns(value):
    with pytest.raises(InvalidPatternError, match=r"sparsity: got .* expected a ratio in \[0, 1\)"):
        SparsityPattern.parse(value)


@pytest.mark.parametrize(
    "fields",
    [{}, {"kept": 2}, {"group_size": 4}, {"ratio": 0.5, "kept": 2, "group_size": 4}, {"kept": 4, "group_size": 2}],
)
def test_bad_fields(fields):
    with pytest.raises(InvalidPatternError):
        SparsityPattern(**fields)


def test_width():
    SparsityPattern.parse("2:4").check_width(12, "up")
    SparsityPattern.parse(0.5).check_width(7, "up")
    with pytest.raises(
        InvalidPatternError, match="layer up: got 10 inputs for the pattern 2:4, expected a width that 4"
    ):
        SparsityPattern.parse("2:4").check_width(10, "up")


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SparsityPattern.parse(0.5).ratio = 0.6
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayerStats("up", 1, 1).tokens = 2


def test_squared_norm_is_per_window_not_per_token():
    stats = LayerStats("up", tokens=100, windows=4, sq_sum=torch.tensor([8.0, 2.0], dtype=torch.float64))
    norm = stats.squared_norm()
    assert norm.dtype == torch.float32
    assert norm.tolist() == [2.0, 0.5]


@pytest.mark.parametrize(
    "fields",
    [
        {"sq_sum": torch.ones(3), "abs_sum": torch.ones(4)},
        {"sq_sum": torch.ones(3), "gram": torch.ones(4, 4)},
        {"gram": torch.ones(3, 4)},
        {"max_abs": torch.ones(3), "grad_sq": torch.ones(3, 5)},
    ],
)
def test_statistics_of_different_widths(fields):
    with pytest.raises(ShapeMismatchError, match=r"statistics of layer up: got \w+ of shape"):
        LayerStats("up", 1, 1, **fields)


def test_statistics_that_fit():
    stats = LayerStats("up", 1, 1, sq_sum=torch.ones(3), gram=torch.eye(3), grad_sq=torch.ones(5, 3))
    assert stats.require(Stat.GRAD_SQ).shape == (5, 3)
    moved = stats.to("cpu")
    assert torch.equal(moved.require(Stat.GRAM), torch.eye(3))
    assert moved.max_abs is None


def test_a_missing_statistic_says_how_to_collect_it():
    with pytest.raises(MissingStatisticError, match=r"layer up: got statistics without gram.*calibration\.gram: true"):
        LayerStats("up", 1, 1).require(Stat.GRAM)
    with pytest.raises(MissingStatisticError, match="statistics without sq_sum"):
        LayerStats("up", 1, 1).squared_norm()


@pytest.mark.parametrize(
    "values", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(2, 2).double(), torch.ones(2, 2).half()]
)
def test_scores_are_float32_matrices(values):
    with pytest.raises(ShapeMismatchError, match="scores of layer up"):
        ScoreMatrix("up", values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_scores_are_finite(bad):
    with pytest.raises(NonFiniteError, match="scores of layer up"):
        ScoreMatrix("up", torch.tensor([[1.0, bad]]))


def test_masks_are_bool_matrices():
    assert Mask("up", torch.tensor([[True, False, False, False]])).sparsity == 0.75
    for keep in (torch.ones(2, 2), torch.ones(4).bool()):
        with pytest.raises(ShapeMismatchError, match="mask of layer up"):
            Mask("up", keep)
