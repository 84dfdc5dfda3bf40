"""The OBS sweep against the textbook removal of one weight at a time, in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.linalg import damped_hessian, obs_sweep


def problem(out=5, width=24, tokens=70, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    x = mix @ torch.randn(width, tokens, generator=generator)
    x[list(dead)] = 0.0
    weight = torch.randn(out, width, generator=generator)
    return weight, damped_hessian(x @ x.T, 0.01, "up")


def copy(hessian):
    """A sweep takes the matrix."""
    return replace(hessian, matrix=hessian.matrix.clone())


def fixed(keep):
    return lambda saliency, start: keep[:, start : start + saliency.shape[1]]


def textbook(weight, keep, matrix):
    """Remove the pruned weights of a row left to right; earlier columns are frozen, as in SparseGPT.

    Removing q from the weights F that may still move: dw_F = - w_q / [H_FF^-1]_qq [H_FF^-1]_q,: .
    """
    result = weight.double().clone()
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(matrix.double()[j:, j:])
        removed = result[:, j] * ~keep[:, j]
        result[:, j:] -= (removed / inverse[0, 0])[:, None] * inverse[0]
    return result * keep


@pytest.mark.parametrize("block_size", [1, 5, 16, 128])
@pytest.mark.parametrize("dead", [(), (4, 11)])
def test_equals_the_textbook(block_size, dead):
    weight, hessian = problem(dead=dead)
    keep = torch.rand(5, 24, generator=torch.Generator().manual_seed(9)) > 0.5
    got, mask = obs_sweep(weight, copy(hessian), fixed(keep), step=block_size, block_size=block_size)
    expected = textbook(weight.masked_fill(hessian.dead, 0.0), keep, hessian.matrix)
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(mask, keep)
    assert not got[~keep].any()


@settings(max_examples=40, deadline=None)
@given(step=st.integers(1, 40), block_size=st.integers(1, 64), width=st.integers(1, 60), fixed_step=st.integers(1, 64))
def test_repeating_the_sweep_with_its_mask_gives_its_weights(step, block_size, width, fixed_step):
    weight, hessian = problem(out=3, width=width, tokens=3 * width + 5, seed=width)
    asked = []

    def choose(saliency, start):
        asked.extend(range(start, start + saliency.shape[1]))
        return saliency > saliency.median()

    weights, keep = obs_sweep(weight, copy(hessian), choose, step=step, block_size=block_size)
    assert asked == list(range(width))
    again, _ = obs_sweep(weight, hessian, fixed(keep), step=fixed_step, block_size=fixed_step)
    torch.testing.assert_close(again, weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("step", [4, 128])
def test_the_same_blocks_give_the_same_bits(step):
    weight, hessian = problem(out=8, width=160, tokens=400)
    weights, keep = obs_sweep(weight, copy(hessian), lambda s, _: s > s.median(), step=step)
    again, _ = obs_sweep(weight, hessian, fixed(keep), step=128)
    assert torch.equal(again, weights)


def test_saliency_is_of_the_updated_weights():
    weight, hessian = problem(width=6)
    seen = []

    def choose(saliency, start):
        seen.append(saliency.clone())
        return torch.zeros_like(saliency, dtype=torch.bool) if start == 0 else torch.ones_like(saliency) > 0

    obs_sweep(weight, copy(hessian), choose, step=3)
    matrix = hessian.matrix.double()
    keep = torch.ones(5, 6, dtype=torch.bool)
    keep[:, :3] = False
    updated = textbook(weight, keep, matrix)
    inverse = [torch.linalg.inv(matrix[j:, j:])[0, 0] for j in range(6)]
    expected = torch.stack([updated[:, j].abs() / inverse[j].sqrt() for j in range(3, 6)], dim=1)
    torch.testing.assert_close(seen[1].double(), expected, rtol=1e-3, atol=1e-4)
    first = torch.stack([weight[:, j].double().abs() / inverse[j].sqrt() for j in range(3)], dim=1)
    torch.testing.assert_close(seen[0].double(), first, rtol=1e-3, atol=1e-4)


def test_the_weight_itself_stays():
    weight, hessian = problem(dead=(1,))
    before = weight.clone()
    obs_sweep(weight, hessian, lambda s, _: s > s.median(), step=8)
    assert torch.equal(weight, before)
