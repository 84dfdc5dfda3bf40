"""The closed-form scores against independent float64 formulas, with numbers that tell near misses apart."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from zpruner.errors import MissingStatisticError
from zpruner.masks import select
from zpruner.methods.magnitude import Magnitude
from zpruner.methods.ria import Ria
from zpruner.methods.wanda import Wanda
from zpruner.methods.zpruner import ZPruner
from zpruner.types import LayerStats, SparsityPattern

WINDOWS = 3


def stats_of(a):
    """Statistics whose squared norm per window is `a`."""
    return LayerStats("up", 30, WINDOWS, sq_sum=torch.as_tensor(np.asarray(a) * WINDOWS, dtype=torch.float32))


def sample(out=5, width=7, mean=0.02):
    rng = np.random.default_rng(5)
    weight = rng.normal(mean, 0.1, (out, width)).astype(np.float32)
    weight[rng.random(weight.shape) < 0.2] *= 0.01
    return weight, rng.gamma(1.0, 20.0, width).astype(np.float32)


def magnitude_reference(w, a):
    return np.abs(w.astype(np.float64))


def wanda_reference(w, a):
    return np.array([[abs(float(w[i, j])) * float(a[j]) ** 0.5 for j in range(w.shape[1])] for i in range(w.shape[0])])


def ria_reference(w, a, power=0.5):
    size = np.abs(w.astype(np.float64))
    score = np.zeros_like(size)
    for i, j in np.ndindex(size.shape):
        if size[i, j]:
            relative = size[i, j] / size[:, j].sum() + size[i, j] / size[i, :].sum()
            score[i, j] = relative * np.sqrt(float(a[j])) ** power
    return score


def zpruner_reference(w, a, share=0.7, discount=0.3, threshold=0.1, power=3.0, activation=1.5, ddof=1):
    w = w.astype(np.float64)
    rows = np.array([w[i] / np.linalg.norm(w[i]) if w[i].any() else w[i] for i in range(len(w))])
    cols = np.array([c / np.linalg.norm(c) if c.any() else c for c in w.T]).T
    z_rows, z_cols = ((r - r.mean()) / r.std(ddof=ddof) for r in (rows, cols))
    q = np.mean(np.abs(w) < threshold * np.abs(w).mean())
    alpha = share * (1 - discount * q)
    score = alpha * np.abs(z_rows) ** power + (1 - alpha) * np.abs(z_cols) ** power
    alive = w.any(axis=1)[:, None] & w.any(axis=0)[None, :]
    return score * np.sqrt(a.astype(np.float64)) ** activation * alive


def assert_score(method, reference, weight, a, rtol=1e-5):
    got = method.score(torch.from_numpy(weight), stats_of(a)).numpy()
    np.testing.assert_allclose(got, reference, rtol=rtol, atol=1e-6 * np.abs(reference).mean())


@pytest.mark.parametrize("shape", [(5, 7), (1, 9), (9, 1), (40, 16)])
@pytest.mark.parametrize(
    ("method", "reference"),
    [
        (Magnitude(), magnitude_reference),
        (Wanda(), wanda_reference),
        (Ria(), ria_reference),
        (ZPruner(), zpruner_reference),
    ],
    ids=lambda value: type(value).__name__ if not callable(value) else "",
)
def test_default_settings(method, reference, shape):
    weight, a = sample(*shape)
    assert_score(method, reference(weight, a), weight, a)


def test_zpruner_in_several_blocks(monkeypatch):
    weight, a = sample(40, 16)
    monkeypatch.setattr("zpruner.methods.zpruner._BLOCK", 16 * 7)
    assert_score(ZPruner(), zpruner_reference(weight, a), weight, a)


def test_each_setting_reaches_its_place():
    weight, a = sample()
    assert_score(Ria(activation_power=1.25), ria_reference(weight, a, 1.25), weight, a)
    settings = {
        "row_weight": ("share", 0.4),
        "near_zero_discount": ("discount", 0.9),
        "near_zero_threshold": ("threshold", 0.6),
        "power": ("power", 2.0),
        "activation_power": ("activation", 0.5),
    }
    default = zpruner_reference(weight, a)
    for field, (argument, value) in settings.items():
        reference = zpruner_reference(weight, a, **{argument: value})
        assert not np.allclose(reference, default, rtol=1e-3)
        assert_score(ZPruner(**{field: value}), reference, weight, a)


def test_zpruner_deviation_is_unbiased_and_of_the_whole_matrix():
    weight, a = sample(3, 4)
    got = ZPruner().score(torch.from_numpy(weight), stats_of(a)).numpy()
    biased = zpruner_reference(weight, a, ddof=0)
    np.testing.assert_allclose(got / biased, (11 / 12) ** 1.5, rtol=1e-4)


def test_zpruner_spread_far_below_the_mean():
    weight, a = sample(20, 16)
    weight = (1.0 + 0.01 * weight).astype(np.float32)
    assert_score(ZPruner(), zpruner_reference(weight, a), weight, a, rtol=2e-2)


@pytest.mark.parametrize("shape", [(20, 16), (7, 3), (33, 5), (6, 11), (1, 1)])
@pytest.mark.parametrize("value", [0.3, -0.1, 1e-3, 7.7])
def test_zpruner_constant_matrix_scores_zero(shape, value):
    assert not ZPruner().score(torch.full(shape, value), stats_of(np.ones(shape[1]))).any()


@pytest.mark.parametrize("method", [Ria(), ZPruner()])
def test_zero_rows_and_columns_score_zero(method):
    weight, a = sample()
    weight[1], weight[:, 4] = 0.0, 0.0
    score = method.score(torch.from_numpy(weight), stats_of(a))
    assert not score[1].any()
    assert not score[:, 4].any()
    reference = ria_reference if isinstance(method, Ria) else zpruner_reference
    assert_score(method, reference(weight, a), weight, a)


def test_tiny_weights_do_not_underflow_in_the_norms():
    weight, a = sample()
    large, small = (ZPruner().score(torch.from_numpy(weight) * s, stats_of(a)) for s in (1.0, 2.0**-80))
    torch.testing.assert_close(small, large, rtol=1e-5, atol=0.0)


def kept(method, weight, a, pattern=0.5):
    score = method.score(torch.tensor(weight), stats_of(a))
    return select(score, SparsityPattern.parse(pattern), method.default_group).int().tolist()


def test_wanda_takes_the_norm_not_its_square():
    assert kept(Wanda(), [[5.0, 3.0]], [1.0, 2.25]) == [[1, 0]]
    assert kept(Wanda(), [[5.0, 3.0]], [1.0, 4.0]) == [[0, 1]]


def test_wanda_compares_within_a_row_and_magnitude_within_the_layer():
    weight = [[1.0, 2.0], [-3.0, 4.0]]
    assert kept(Wanda(), weight, [1.0, 1.0]) == [[0, 1], [0, 1]]
    assert kept(Magnitude(), weight, [1.0, 1.0]) == [[0, 0], [1, 1]]


def test_ria_is_relative_and_takes_the_fourth_root():
    # Column sums 4 and 12, row sums 8 and 8: shares 0.375 and 1.458 above, 1.125 and 1.042 below.
    weight = [[1.0, 7.0], [3.0, 5.0]]
    assert kept(Ria(), weight, [1.0, 1.0]) == [[0, 1], [1, 0]]
    # Above, the left weight needs a factor 3.89: 100^(1/4) is less, 100^(1/2) and 256^(1/4) are more.
    assert kept(Ria(), weight, [100.0, 1.0], "1:2") == [[0, 1], [1, 0]]
    assert kept(Ria(activation_power=1.0), weight, [100.0, 1.0], "1:2") == [[1, 0], [1, 0]]
    assert kept(Ria(), weight, [256.0, 1.0], "1:2") == [[1, 0], [1, 0]]


def test_one_of_four_keeps_one():
    assert kept(Magnitude(), [[1.0, -4.0, 3.0, 2.0]], [1.0] * 4, "1:4") == [[0, 1, 0, 0]]


@pytest.mark.parametrize("method", [Wanda(), Ria(), ZPruner()])
def test_a_missing_statistic_is_named(method):
    with pytest.raises(MissingStatisticError, match=r"layer up.*sq_sum"):
        method.score(torch.ones(2, 2), LayerStats("up", 1, 1))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (Ria, {"activation_power": -0.5}),
        (Ria, {"power": float("nan")}),
        (Ria, {"power": float("inf")}),
        (Ria, {"power": "0.5"}),
        (Ria, {"power": True}),
        (Ria, {"p": 0.5}),
        (Wanda, {"power": 0.5}),
        (Magnitude, {"group": "row"}),
        (ZPruner, {"row_weight": 1.1}),
        (ZPruner, {"row_weight": -0.1}),
        (ZPruner, {"near_zero_discount": 1.5}),
        (ZPruner, {"near_zero_threshold": -1.0}),
        (ZPruner, {"power": 0.0}),
        (ZPruner, {"power": 9.0}),
        (ZPruner, {"activation_power": float("nan")}),
    ],
)
def test_bad_hyper_parameters_are_refused(method, settings):
    with pytest.raises(ValidationError):
        method(**settings)


def test_whole_numbers_are_good_hyper_parameters():
    assert ZPruner(power=3) == ZPruner()
