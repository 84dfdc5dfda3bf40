"""The damped Hessian and the factor of its inverse, against float64."""

import pytest
import torch

from zpruner.errors import InvalidSettingError, NonFiniteError, ShapeMismatchError, SolverError
from zpruner.linalg import damped_hessian, inverse, inverse_factor


def gram_matrix(width=24, tokens=60, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    x = mix @ torch.randn(width, tokens, generator=generator) * torch.linspace(0.3, 4.0, width)[:, None]
    x[list(dead)] = 0.0
    return x @ x.T


def test_is_a_multiple_of_the_formula():
    gram = gram_matrix()
    got = damped_hessian(gram, 0.03, "up", shrinkage=0.2).matrix.double()
    mean = gram.diagonal().double().mean()
    expected = gram.double() + 0.03 * mean * torch.eye(24) + 0.2 * torch.diag(gram.diagonal().double())
    torch.testing.assert_close(got * mean, expected, rtol=1e-5, atol=1e-4)


def test_does_not_change_the_gram_matrix():
    gram = gram_matrix()
    before = gram.clone()
    damped_hessian(gram, 0.5, "up")
    assert torch.equal(gram, before)


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_a_dead_input_has_the_identity_row(damping):
    hessian = damped_hessian(gram_matrix(dead=(3, 17)), damping, "up")
    assert hessian.dead.nonzero().squeeze(1).tolist() == [3, 17]
    for j in (3, 17):
        assert torch.equal(hessian.matrix[j], torch.eye(24)[j])
        assert torch.equal(hessian.matrix[:, j], torch.eye(24)[j])


def test_all_inputs_dead():
    hessian = damped_hessian(torch.zeros(5, 5), 0.01, "up")
    assert torch.equal(hessian.matrix, torch.eye(5))
    assert hessian.dead.all()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_scale_drops_out(scale):
    gram = gram_matrix()
    got = damped_hessian(gram * scale, 0.01, "up").matrix
    # 1e-42 leaves a few bits of a denormal number.
    torch.testing.assert_close(got, damped_hessian(gram, 0.01, "up").matrix, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dead", [(), (0, 23)])
def test_factor_of_the_inverse(dead):
    hessian = damped_hessian(gram_matrix(dead=dead), 0.01, "up")
    inverse = torch.linalg.inv(hessian.matrix.double())
    memory = hessian.matrix.untyped_storage().data_ptr()
    upper = inverse_factor(hessian)
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    assert upper.untyped_storage().data_ptr() == memory
    assert not hessian.matrix.numel()  # who read it now would read the factor
    error = (upper.double().T @ upper.double() - inverse).norm() / inverse.norm()
    assert error < 1e-4


def test_singular_without_damping_names_layer_and_damping():
    hessian = damped_hessian(gram_matrix(tokens=10), 0.0, "blocks.2.down")
    with pytest.raises(SolverError, match=r"layer blocks\.2\.down.*damping 0,.*Set damping to 0\.01"):
        inverse_factor(hessian)
    inverse_factor(damped_hessian(gram_matrix(tokens=10), 0.01, "blocks.2.down"))


def test_the_damping_to_try_grows():
    # An indefinite matrix is no Gram matrix: even 5 % damping does not mend it.
    hessian = damped_hessian(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 0.05, "up")
    with pytest.raises(SolverError, match=r"Set damping to 0\.5"):
        inverse_factor(hessian)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(bad):
    gram = gram_matrix()
    gram[2, 5] = bad
    with pytest.raises(NonFiniteError, match=r"layer up"):
        damped_hessian(gram, 0.01, "up")


@pytest.mark.parametrize("gram", [torch.eye(4, dtype=torch.float64), torch.ones(3, 4), torch.ones(4)])
def test_not_a_gram_matrix(gram):
    with pytest.raises(ShapeMismatchError, match=r"layer up"):
        damped_hessian(gram, 0.01, "up")


@pytest.mark.parametrize("settings", [{"damping": -0.1}, {"damping": float("nan")}, {"damping": 0, "shrinkage": -1}])
def test_bad_settings(settings):
    with pytest.raises(InvalidSettingError):
        damped_hessian(torch.eye(3), layer="up", **settings)


@pytest.mark.parametrize("width", [1, 8, 9, 24, 37])
def test_the_inverse_by_halves(width, monkeypatch):
    monkeypatch.setattr("zpruner.linalg._hessian._FACTORED", 8)
    hessian = damped_hessian(gram_matrix(width), 0.01, "blocks.0.up")
    matrix = hessian.matrix.double()
    found = inverse(hessian.matrix.clone(), hessian).double()
    torch.testing.assert_close(found @ matrix, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, found.T, rtol=0, atol=1e-4)


def test_an_inverse_by_halves_that_does_not_exist(monkeypatch):
    monkeypatch.setattr("zpruner.linalg._hessian._FACTORED", 8)
    hessian = damped_hessian(gram_matrix(24), 0.01, "blocks.0.up")
    matrix = hessian.matrix.clone()
    matrix[20, 20] = 0.0
    with pytest.raises(SolverError, match=r"blocks\.0\.up"):
        inverse(matrix, hessian)
