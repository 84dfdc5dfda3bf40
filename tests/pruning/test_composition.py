import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from zpruner.errors import (
    InvalidSettingError,
    MissingStatisticError,
    NonFiniteError,
    ShapeMismatchError,
    UnknownNameError,
)
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import derive_mask
from zpruner.settings.params import MethodSettings
from zpruner.types import ComparisonGroup, LayerStats, Mask, SparsityPattern, Stat, check_weight

HALF = SparsityPattern(ratio=0.5)


def stats(width=8, gram=True):
    torch.manual_seed(1)
    X = torch.randn(width, 40)
    sums: dict[str, Any] = {
        "sq_sum": X.double().square().sum(1),
        "abs_sum": X.double().abs().sum(1),
        "max_abs": X.abs().amax(1),
    }
    return replace(LayerStats("layer", 40, 2, gram=X @ X.T if gram else None), **sums)


def weight(dtype=torch.float32):
    torch.manual_seed(0)
    return torch.randn(6, 8).to(dtype)


def composition(**settings):
    return compose(MethodSettings(**settings))


def test_the_group_is_the_methods_own_or_the_one_asked_for():
    assert composition(score="wanda").group is ComparisonGroup.ROW
    assert composition(score="zpruner").group is ComparisonGroup.LAYER
    assert composition(score="zpruner", group="row").group is ComparisonGroup.ROW


def test_the_group_decides_who_competes():
    by_row = composition(score="magnitude", group="row")
    by_layer = composition(score="magnitude", group="layer")
    W = weight() * torch.arange(1, 7)[:, None]
    masks = [c.mask(W, stats(), HALF).keep for c in (by_row, by_layer)]
    assert masks[0].sum(1).tolist() == [4] * 6
    assert masks[1].sum() == 24
    assert masks[1].sum(1).tolist() != [4] * 6
    assert torch.equal(masks[1], W.abs() >= W.abs().flatten().sort().values[24])


def test_needs_are_those_of_all_parts():
    assert composition(score="magnitude").needs == frozenset()
    assert composition(score="wanda").needs == {Stat.SQ_SUM}
    assert composition(score="magnitude", update="obs").needs == {Stat.GRAM}
    assert composition(score="wanda", refine="swaps").needs == {Stat.SQ_SUM, Stat.GRAM}


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"score": "wandaa"}, UnknownNameError, "'wandaa'.*Did you mean 'wanda'"),
        ({"score": "wanda", "update": "obss"}, UnknownNameError, "'obss'.*Did you mean 'obs'"),
        ({"score": "wanda", "refine": "swap"}, UnknownNameError, "'swap'.*Did you mean 'swaps'"),
        ({"score": "zpruner", "settings": {"powr": 3.0}}, InvalidSettingError, "'zpruner'.*'powr'.*mean 'power'"),
        ({"score": "zpruner", "settings": {"power": -1.0}}, InvalidSettingError, "power: got -1.0"),
        ({"score": "wanda", "settings": {"power": 1.0}}, InvalidSettingError, "unknown key 'power'"),
        (
            {"score": "wanda", "update": {"name": "obs", "settings": {"dampin": 1.0}}},
            InvalidSettingError,
            "'obs'.*Did you mean 'damping'",
        ),
    ],
)
def test_bad_compositions(settings, error, message):
    with pytest.raises(error, match=message):
        composition(**settings)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "settings",
    [
        {"score": "alps", "settings": {"rho": "?"}},
        {"score": "wanda", "refine": {"name": "swaps", "settings": {"damping": "?"}}},
        {"score": "wanda", "update": {"name": "obs", "settings": {"damping": "?"}}},
        {"score": "wanda", "allocate": {"name": "owl", "settings": {"multiple": "?"}}},
        {"score": "wanda", "correct": {"damping": "?"}},
    ],
)
def test_no_setting_may_be_infinite(settings, value):
    settings = json.loads(json.dumps(settings).replace('"?"', json.dumps(value)))
    with pytest.raises(InvalidSettingError, match=r"got (inf|nan), expected (a finite number|greater than)"):
        compose(MethodSettings(**settings))


def test_a_refinement_keeps_the_count_and_an_update_the_zeros():
    plain, refined = composition(score="wanda"), composition(score="wanda", refine="swaps", update="obs")
    W, found = weight(torch.bfloat16), stats()
    scores = plain.score(W, found)
    before, after = plain.mask(W, found, HALF, scores), refined.mask(W, found, HALF, scores)
    assert not torch.equal(before.keep, after.keep)
    assert torch.equal(before.keep.sum(1), after.keep.sum(1))
    assert torch.equal(derive_mask(refined, scores, HALF).keep, before.keep)
    pruned = refined.apply(W, after, found)
    assert pruned.dtype == torch.bfloat16
    assert torch.equal(pruned != 0, after.keep)
    assert not torch.equal(pruned, W * after.keep)


def test_without_an_update_kept_weights_stay_bit_for_bit():
    plain = composition(score="wanda")
    W = weight(torch.bfloat16)
    mask = Mask("layer", torch.arange(48).reshape(6, 8) % 3 == 0)
    assert torch.equal(plain.apply(W, mask, None), torch.where(mask.keep, W, 0))


def test_scores_do_not_depend_on_the_weights_layout():
    plain = composition(score="zpruner")
    W = weight()
    transposed = W.T.contiguous().T
    assert torch.equal(plain.score(W, stats()).values, plain.score(transposed, stats()).values)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_finite(value, dtype):
    W = weight(dtype)
    W[3, 5] = value
    with pytest.raises(NonFiniteError, match="weight of layer layer: got NaN or infinity"):
        composition(score="magnitude").score(W, stats())


def test_statistics_of_another_width():
    with pytest.raises(ShapeMismatchError, match="layer layer: got a weight with 8 inputs and statistics of 5"):
        check_weight(weight(), stats(5))


def test_missing_statistics():
    refined, found = composition(score="wanda", refine="swaps"), stats(gram=False)
    scores = refined.score(weight(), found)
    with pytest.raises(MissingStatisticError, match="layer layer: got statistics without gram"):
        refined.mask(weight(), found, HALF, scores)


def test_an_update_is_never_left_out():
    updated = composition(score="wanda", update="obs")
    with pytest.raises(MissingStatisticError, match="layer layer: got no statistics"):
        updated.apply(weight(), Mask("layer", torch.ones(6, 8, dtype=torch.bool)), None)


def test_pruned_weights_are_positive_zeros():
    """Whatever leaves zeros out, as a packed checkpoint does, need not remember their signs."""
    dense = -weight().abs()
    mask = Mask("layer", torch.arange(8).expand(6, 8) % 2 == 0)
    for settings in ({"score": "wanda"}, {"score": "wanda", "update": "obs"}):
        pruned = composition(**settings).apply(dense, mask, stats())
        assert not pruned[~mask.keep].signbit().any()
        assert (pruned[mask.keep] != 0).all()
