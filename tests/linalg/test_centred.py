"""Statistics less the mean of the input: the covariance that is left once a bias carries the mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import MissingStatisticError
from zpruner.linalg import centred, damped_hessian
from zpruner.types import LayerStats


def stats_of(x: torch.Tensor) -> LayerStats:
    """Of inputs (tokens, in), the first half of them apart."""
    half = x[: len(x) // 2]
    return LayerStats(
        "layer",
        len(x),
        1,
        sq_sum=x.double().square().sum(0),
        sum=x.double().sum(0),
        gram=x.T @ x,
        gram_half=half.T @ half,
        sum_half=half.double().sum(0),
    )


@given(tokens=st.integers(8, 40).map(lambda n: 2 * n), offset=st.floats(-2, 2), seed=st.integers(0, 99))
def test_it_is_the_covariance(tokens: int, offset: float, seed: int) -> None:
    x = torch.randn(tokens, 5, generator=torch.Generator().manual_seed(seed)) + offset * torch.arange(5)
    found = centred(stats_of(x))
    for part, gram in ((x, found.gram), (x[: tokens // 2], found.gram_half)):
        less = part.double() - part.double().mean(0)
        torch.testing.assert_close(gram, (less.T @ less).float(), rtol=1e-3, atol=1e-3)
    less = x.double() - x.double().mean(0)
    torch.testing.assert_close(found.sq_sum, less.square().sum(0), rtol=1e-3, atol=1e-3)
    assert found.sum is not None
    assert not found.sum.any()


def test_a_constant_input_is_left_to_the_bias() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 30.0
    found = centred(stats_of(x))
    assert found.gram is not None
    assert not found.gram[2].any()
    assert not found.gram[:, 2].any()
    assert damped_hessian(found.gram, 0.01, "layer").dead.tolist() == [False, False, True, False]


def test_halves_without_their_sum_are_left_out_and_no_sum_is_told() -> None:
    x = torch.randn(8, 3)
    known = stats_of(x)
    assert (
        centred(LayerStats("layer", 8, 1, sum=known.sum, gram=known.gram, gram_half=known.gram_half)).gram_half is None
    )
    with pytest.raises(MissingStatisticError, match=r"layer layer: .*sum"):
        centred(LayerStats("layer", 8, 1, gram=known.gram))
