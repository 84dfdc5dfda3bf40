"""What holds for every registered method; a new method is covered without a test for it."""

import pytest
import torch

from zpruner.masks import select
from zpruner.methods import METHODS, MaskSolver
from zpruner.types import ComparisonGroup, LayerStats, SparsityPattern, Stat

OUT, IN, TOKENS, WINDOWS = 6, 8, 40, 4
TWO_OF_FOUR = SparsityPattern.parse("2:4")

SETTINGS = {"expression": {"formula": "mul(abs(W), sqrt(X))"}}
"""Settings of the methods that cannot be built without any."""


def layer_stats(dead=(), scale=1.0):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(IN, TOKENS, generator=generator) * torch.linspace(0.5, 3.0, IN)[:, None]
    grad = torch.randn(WINDOWS, OUT, IN, generator=generator)
    for channel in dead:
        x[channel] = 0.0
        grad[:, :, channel] = 0.0
    return LayerStats(
        "blocks.0.up",
        TOKENS,
        WINDOWS,
        sq_sum=x.square().sum(1) * scale,
        sum=x.sum(1),
        abs_sum=x.abs().sum(1),
        max_abs=x.abs().amax(1),
        gram=x @ x.T,
        gram_half=x[:, : TOKENS // 2] @ x[:, : TOKENS // 2].T,
        sum_half=x[:, : TOKENS // 2].sum(1),
        grad_sq=grad.square().sum(0),
        cross=1.5 * x @ x.T,
        cross_half=1.5 * x[:, : TOKENS // 2] @ x[:, : TOKENS // 2].T,
        drift=grad.sum(0),
        effect=grad.square().sum((0, 2)),
    )


def random_weight():
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(4)) * 0.1


def build(name):
    return METHODS.find(name)(**SETTINGS.get(name, {}))


def score_of(method, weight, stats):
    """Scores, or of a solver its mask as 1 and 0."""
    if isinstance(method, MaskSolver):
        return method.solve(weight, stats, TWO_OF_FOUR).keep.float()
    return method.score(weight, stats)


every_method = pytest.mark.parametrize("name", METHODS.names())


def check_score(score):
    assert score.dtype == torch.float32
    assert score.shape == (OUT, IN)
    assert torch.isfinite(score).all()


@every_method
def test_declares_what_it_needs(name):
    method = build(name)
    assert method.required() <= set(Stat)
    assert isinstance(method.default_group, ComparisonGroup)
    assert method.__doc__


@every_method
def test_settings_are_frozen_and_strict(name):
    method = METHODS.find(name)
    assert method.model_config["frozen"]
    assert method.model_config["extra"] == "forbid"
    assert (name in SETTINGS) == any(field.is_required() for field in method.model_fields.values())


@every_method
def test_score_is_a_finite_float32_matrix(name):
    check_score(score_of(build(name), random_weight(), layer_stats()))


@every_method
def test_inputs_are_left_alone(name):
    weight, stats = random_weight(), layer_stats()
    score = score_of(build(name), weight, stats)
    assert torch.equal(weight, random_weight())
    for stat in Stat:
        assert torch.equal(stats.require(stat), layer_stats().require(stat))
    assert score.data_ptr() != weight.data_ptr()


@every_method
def test_same_input_same_bytes(name):
    method = build(name)
    once, again = (score_of(method, random_weight(), layer_stats()) for _ in range(2))
    assert torch.equal(once, again)


@every_method
def test_only_the_required_statistics_are_read(name):
    method, full = build(name), layer_stats()
    wanted = {stat.value: full.require(stat) for stat in method.required()}
    bare = LayerStats(full.layer, full.tokens, full.windows, **wanted)
    assert torch.equal(score_of(method, random_weight(), bare), score_of(method, random_weight(), full))


@every_method
@pytest.mark.parametrize("case", ["zero matrix", "zero row and column", "constant", "single weight", "subnormal"])
def test_degenerate_weights_score_finite(name, case):
    weight = random_weight()
    if case == "zero matrix":
        weight.zero_()
    elif case == "zero row and column":
        weight[2], weight[:, 5] = 0.0, 0.0
    elif case == "constant":
        weight.fill_(0.25)
    elif case == "single weight":
        weight.zero_()[1, 3] = -2.0
    else:
        weight[:, 1], weight[4] = 1e-42, 1e-42
    check_score(score_of(build(name), weight, layer_stats()))


@every_method
@pytest.mark.parametrize("dead", [(0, 5), range(IN)])
def test_dead_inputs_score_finite(name, dead):
    check_score(score_of(build(name), random_weight(), layer_stats(dead=dead)))


@every_method
def test_scale_of_the_squared_norm_does_not_change_the_ranking(name):
    method = build(name)
    if not method.required() <= {Stat.SQ_SUM}:
        pytest.skip("reads more than the squared norm")
    one, scaled = (score_of(method, random_weight(), layer_stats(scale=s)) for s in (1.0, 16.0))
    assert torch.equal(one.flatten().argsort(), scaled.flatten().argsort())


@every_method
@pytest.mark.parametrize("pattern", ["1:4", "2:4", 0.6])
def test_any_method_goes_with_any_pattern(name, pattern):
    method, pattern, weight, stats = build(name), SparsityPattern.parse(pattern), random_weight(), layer_stats()
    if isinstance(method, MaskSolver):
        found = method.solve(weight, stats, pattern)
        keep = found.keep
        assert keep.dtype == torch.bool
        assert found.weight.dtype == torch.float32
        assert not found.weight[~keep].any()
        if method.same_as_update() is not None:  # others leave the weights to an update
            before, after = (((weight - w) @ stats.gram * (weight - w)).sum() for w in (weight * keep, found.weight))
            assert after < before
    else:
        keep = select(method.score(weight, stats), pattern, method.default_group)
    if pattern.kept is not None:
        assert (keep.view(-1, 4).sum(1) == pattern.kept).all()
