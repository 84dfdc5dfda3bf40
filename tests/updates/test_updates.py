"""The weight updates for a fixed mask."""

from typing import Any

import pytest
import torch

from zpruner.errors import MissingStatisticError, SolverError
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.types import LayerStats, SparsityPattern
from zpruner.updates import UPDATES, WeightUpdate

OUT, IN = 6, 16


def stats(tokens=60, dead=()):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(IN, IN, generator=generator) @ torch.randn(IN, tokens, generator=generator)
    x[list(dead)] = 0.0
    return LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T)


def weight_and_mask():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(OUT, IN, generator=generator), torch.rand(OUT, IN, generator=generator) > 0.5


def layer_error(weight, other, gram):
    change = (weight - other).double()
    return float((change @ gram.double() * change).sum() / (weight.double() @ gram.double() * weight.double()).sum())


every_update = pytest.mark.parametrize("name", UPDATES.names())


@every_update
@pytest.mark.parametrize(("tokens", "dead"), [(60, ()), (5, ()), (60, (0, 3))])
def test_lowers_the_error_and_keeps_the_zeros(name, tokens, dead):
    weight, keep = weight_and_mask()
    given = stats(tokens, dead)
    updated = UPDATES.find(name)().update(weight, keep, given)
    assert updated.dtype == torch.float32
    assert updated.shape == weight.shape
    assert not updated[~keep].any()
    assert not updated[:, list(dead)].any()
    assert layer_error(weight, updated, given.gram) < 0.9 * layer_error(weight, weight * keep, given.gram)


def update_of(name: str, **settings: Any) -> WeightUpdate:
    return UPDATES.find(name)(**settings)


@every_update
def test_needs_the_gram_matrix(name):
    weight, keep = weight_and_mask()
    with pytest.raises(MissingStatisticError, match=r"blocks\.0\.up"):
        UPDATES.find(name)().update(weight, keep, LayerStats("blocks.0.up", 1, 1, sq_sum=torch.ones(IN)))


@pytest.mark.parametrize(("name", "settings"), [("obs", {}), ("least_squares", {"solver": "cholesky"})])
def test_singular_gram_without_damping(name, settings):
    weight, keep = weight_and_mask()
    with pytest.raises(SolverError, match=r"layer blocks\.0\.up.*damping 0,.*Set damping to 0\.01"):
        update_of(name, damping=0.0, **settings).update(weight, keep, stats(tokens=4))


def test_least_squares_is_no_worse_than_the_sweep():
    weight, keep = weight_and_mask()
    given = stats(tokens=40)
    sweep = UPDATES.find("obs")().update(weight, keep, given)
    joint = update_of("least_squares", solver="cholesky").update(weight, keep, given)
    assert layer_error(weight, joint, given.gram) < 0.98 * layer_error(weight, sweep, given.gram)


def test_least_squares_generalises_with_shrinkage():
    weight, keep = weight_and_mask()
    plain, shrunk = (update_of("least_squares", shrinkage=s).update(weight, keep, stats(tokens=20)) for s in (0.0, 0.3))
    assert (shrunk - weight)[keep].norm() < (plain - weight)[keep].norm()


@pytest.mark.parametrize("pattern", ["0.5", "0.37", "2:4"])
def test_obs_repeats_sparsegpt(pattern):
    weight, _ = weight_and_mask()
    parsed = SparsityPattern.parse(pattern)
    keep = SparseGPT().solve(weight, stats(), parsed).keep
    narrow = update_of("obs", block_size=4).update(weight, keep, stats())
    torch.testing.assert_close(UPDATES.find("obs")().update(weight, keep, stats()), narrow, rtol=1e-3, atol=1e-4)
