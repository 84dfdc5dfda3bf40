"""SparseGPT against its definition in float64, block by block."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.errors import InvalidPatternError, MissingStatisticError, SolverError
from zpruner.masks import pruned_count
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.types import LayerStats, SparsityPattern, Stat


def problem(out=7, width=24, tokens=80, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, tokens, generator=generator)
    x[list(dead)] = 0.0
    return torch.randn(out, width, generator=generator), LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T)


def reference(weight, gram, ratio=None, kept=None, group=None, block=128, damping=0.01):
    """Decide and remove column by column with explicit inverses of the trailing Hessian."""
    weight, gram = weight.double().clone(), gram.double()
    width = weight.shape[1]
    hessian = gram + damping * gram.diagonal().mean() * torch.eye(width)
    keep = torch.ones(weight.shape, dtype=torch.bool)
    inverses = [torch.linalg.inv(hessian[j:, j:]) for j in range(width)]
    pivots = torch.stack([inverse[0, 0] for inverse in inverses])
    gone = 0
    step = group or block
    for j in range(width):
        if j % step == 0:
            saliency = weight[:, j : j + step] ** 2 / pivots[j : j + step]
            if group:
                order = saliency.argsort(dim=1)[:, : group - kept]
                keep[:, j : j + step].scatter_(1, order, False)
            else:
                count = pruned_count(weight.shape[0] * min(j + step, width), ratio) - gone
                gone += count
                flat = torch.ones(saliency.numel(), dtype=torch.bool)
                flat[saliency.flatten().argsort()[:count]] = False
                keep[:, j : j + step] = flat.view(saliency.shape)
        removed = weight[:, j] * ~keep[:, j]
        weight[:, j:] -= (removed / pivots[j])[:, None] * inverses[j][0]
    return keep


@pytest.mark.parametrize(("ratio", "block"), [(0.5, 128), (0.5, 8), (0.7, 5), (0.3, 1)])
def test_ratio(ratio, block):
    weight, stats = problem()
    got = SparseGPT(block_size=block).solve(weight, stats, SparsityPattern(ratio=ratio)).keep
    assert torch.equal(got > 0, reference(weight, stats.gram, ratio=ratio, block=block))
    assert set(got.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 4), (2, 3), (12, 24)])
@pytest.mark.parametrize("block", [128, 6])
def test_n_of_m(kept, group, block):
    weight, stats = problem()
    got = SparseGPT(block_size=block).solve(weight, stats, SparsityPattern(kept=kept, group_size=group)).keep
    assert torch.equal(got > 0, reference(weight, stats.gram, kept=kept, group=group))


@settings(max_examples=40, deadline=None)
@given(
    ratio=st.integers(0, 99).map(lambda n: n / 100),
    block=st.integers(1, 30),
    out=st.integers(1, 9),
    width=st.integers(1, 30),
)
def test_counts_are_exact(ratio, block, out, width):
    weight, stats = problem(out, width)
    got = SparseGPT(block_size=block).solve(weight, stats, SparsityPattern(ratio=ratio)).keep
    assert int((got == 0).sum()) == pruned_count(out * width, ratio)


def test_dead_inputs_go_first():
    weight, stats = problem(dead=(2, 3, 20))
    for pattern in (SparsityPattern(ratio=0.5), SparsityPattern(kept=2, group_size=4)):
        got = SparseGPT().solve(weight, stats, pattern).keep
        assert not got[:, [2, 3, 20]].any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_drop_out(scale):
    weight, stats = problem()
    scaled = LayerStats("up", 1, 1, gram=stats.gram * scale)
    pattern = SparsityPattern(ratio=0.5)
    expected = SparseGPT().solve(weight, stats, pattern).keep
    assert torch.equal(SparseGPT().solve(weight * scale, stats, pattern).keep, expected)
    assert (SparseGPT().solve(weight, scaled, pattern).keep == expected).float().mean() > 0.99


def test_fewer_tokens_than_inputs():
    weight, stats = problem(tokens=5)
    pattern = SparsityPattern(ratio=0.5)
    assert int(SparseGPT().solve(weight, stats, pattern).keep.sum()) == 84
    with pytest.raises(SolverError, match=r"layer blocks\.0\.up.*Set damping to 0\.01"):
        SparseGPT(damping=0.0).solve(weight, stats, pattern)


def test_errors():
    weight, stats = problem()
    with pytest.raises(InvalidPatternError, match=r"blocks\.0\.up"):
        SparseGPT().solve(weight, stats, SparsityPattern(kept=3, group_size=5))
    with pytest.raises(MissingStatisticError, match=Stat.GRAM):
        SparseGPT().solve(weight, LayerStats("up", 1, 1, sq_sum=torch.ones(24)), SparsityPattern(ratio=0.5))
