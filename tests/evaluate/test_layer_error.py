from dataclasses import replace

import pytest
import torch

from zpruner.evaluate import error_basis, layer_error
from zpruner.linalg import output_energy
from zpruner.types import LayerStats


def setup(correlated=True, gram=True, dtype=torch.float32):
    torch.manual_seed(0)
    X = torch.randn(12, 200, dtype=torch.float64)
    if correlated:
        X += 2 * torch.randn(1, 200, dtype=torch.float64)
    X *= torch.logspace(-1, 1, 12, dtype=torch.float64)[:, None]
    W = torch.randn(7, 12, dtype=torch.float64).to(dtype)
    pruned = W * (torch.rand(7, 12) > 0.5) + 0.01
    G = (X @ X.T).float() if gram else None
    return X, W, pruned, LayerStats("layer", 200, 4, sq_sum=X.square().sum(1), gram=G)


def direct(X, W, pruned):
    W, pruned = W.double(), pruned.double()
    return float(((W - pruned) @ X).square().sum() / (W @ X).square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_a_gram_matrix_it_is_the_share_of_the_output_that_is_lost(dtype):
    X, W, pruned, stats = setup(dtype=dtype)
    assert layer_error(W, pruned, stats) == pytest.approx(direct(X, W, pruned), rel=1e-4)
    assert error_basis(stats) == "gram"


@pytest.mark.parametrize("gram", [True, False])
def test_a_known_energy_is_not_computed_again(gram):
    _, W, pruned, stats = setup(gram=gram)
    energy = output_energy(W, stats)
    expected = layer_error(W, pruned, stats)
    assert layer_error(W, pruned, replace(stats, energy=energy)) == expected
    assert layer_error(W, pruned, replace(stats, energy=4 * energy)) == expected / 4


@pytest.mark.parametrize("width", [191, 192, 193, 400, 576])
def test_wide_layers_are_summed_in_panels(width):
    torch.manual_seed(width)
    X = torch.randn(width, 600, dtype=torch.float64) + torch.randn(1, 600, dtype=torch.float64)
    W = torch.randn(5, width, dtype=torch.float64)
    pruned = W * (torch.rand(5, width) > 0.3)
    stats = LayerStats("layer", 600, 4, sq_sum=X.square().sum(1), gram=(X @ X.T).float())
    assert layer_error(W, pruned, stats) == pytest.approx(direct(X, W, pruned), rel=1e-5)


def test_without_one_the_inputs_are_taken_as_uncorrelated():
    X, W, pruned, stats = setup(gram=False)
    a = X.square().sum(1)
    expected = float(((W - pruned).double().square() @ a).sum() / (W.double().square() @ a).sum())
    assert layer_error(W, pruned, stats) == pytest.approx(expected, rel=1e-5)
    assert layer_error(W, pruned, stats) != pytest.approx(direct(X, W, pruned), rel=0.05)
    assert error_basis(stats) == "diagonal"


def test_both_agree_where_the_inputs_are_uncorrelated():
    X, W, pruned, stats = setup()
    G = torch.diag(X.square().sum(1)).float()
    with_gram = LayerStats("layer", 200, 4, sq_sum=stats.sq_sum, gram=G)
    without = LayerStats("layer", 200, 4, sq_sum=stats.sq_sum)
    assert layer_error(W, pruned, with_gram) == pytest.approx(layer_error(W, pruned, without), rel=1e-5)


def test_bounds():
    _, W, _, stats = setup()
    assert layer_error(W, W, stats) == 0.0
    assert layer_error(W, torch.zeros_like(W), stats) == pytest.approx(1.0)
    assert layer_error(torch.zeros_like(W), torch.zeros_like(W), stats) == 0.0
