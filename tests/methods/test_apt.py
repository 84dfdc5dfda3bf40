"""APT / MRP against brute force: every choice in a group, every removal, in float64."""

from itertools import combinations

import pytest
import torch

from zpruner.errors import InvalidSettingError
from zpruner.masks import pruned_count
from zpruner.methods.apt import Apt
from zpruner.types import LayerStats, SparsityPattern


def problem(out=6, width=16, tokens=50, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    # Strongly correlated neighbours: joint and single removal differ.
    x = torch.randn(width, tokens, generator=generator)
    x = x + 1.5 * x.roll(1, 0) + torch.randn(1, tokens, generator=generator)
    x[list(dead)] = 0.0
    return torch.randn(out, width, generator=generator), LayerStats("blocks.0.up", tokens, 4, gram=x @ x.T)


def damped(gram):
    gram = gram.double()
    return gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))


def compensated_loss(row, pruned, hessian):
    """Return the least loss with `pruned` at zero, by solving for all other weights, and those weights."""
    row = row.double()
    kept = [j for j in range(len(row)) if j not in pruned]
    best = torch.zeros_like(row)
    best[kept] = torch.linalg.solve(hessian[kept][:, kept], (row @ hessian)[kept])
    change = row - best
    return float(change @ hessian @ change), best


def brute_force(weight, gram, kept, group, block, joint):
    """Choose group by group within a block and compensate between blocks, moving this and later columns only."""
    weight, hessian = weight.double().clone(), damped(gram)
    keep = torch.ones(weight.shape, dtype=torch.bool)
    width = weight.shape[1]
    for start in range(0, width, block):
        trailing = hessian[start:, start:]
        for i in range(len(weight)):
            row = weight[i, start:].clone()
            gone = []
            for first in range(0, min(block, width - start), group):
                columns = range(first, first + group)
                if joint:
                    choices = combinations(columns, group - kept)
                    gone += min(choices, key=lambda pruned: compensated_loss(row, pruned, trailing)[0])
                else:
                    costs = sorted(columns, key=lambda j: compensated_loss(row, [j], trailing)[0])
                    gone += costs[: group - kept]
            keep[i, [start + j for j in gone]] = False
            weight[i, start:] = compensated_loss(row, gone, trailing)[1]
    return keep


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 4)])
@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize("mask", ["S", "M"])
def test_n_of_m(kept, group, block, mask):
    weight, stats = problem()
    got = Apt(mask=mask, block_size=block).solve(weight, stats, SparsityPattern(kept=kept, group_size=group)).keep > 0
    assert torch.equal(got, brute_force(weight, stats.gram, kept, group, block, mask == "M"))


def test_masks_and_blocks_differ():
    weight, stats = problem(out=40)
    pattern = SparsityPattern(kept=2, group_size=4)
    kinds = (Apt(mask="S", block_size=None), Apt(mask="M", block_size=None), Apt(mask="M", block_size=8))
    seen = [kind.solve(weight, stats, pattern).keep for kind in kinds]
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_null_is_one_block_and_blocks_hold_whole_groups():
    weight, stats = problem()
    pattern = SparsityPattern(kept=4, group_size=8)
    assert torch.equal(
        Apt(block_size=None).solve(weight, stats, pattern).keep, Apt(block_size=16).solve(weight, stats, pattern).keep
    )
    assert torch.equal(
        Apt(block_size=3).solve(weight, stats, pattern).keep, Apt(block_size=8).solve(weight, stats, pattern).keep
    )


def test_single_removal_of_a_ratio():
    weight, stats = problem()
    hessian = damped(stats.gram)
    costs = torch.tensor([[compensated_loss(row, [j], hessian)[0] for j in range(16)] for row in weight])
    got = Apt(block_size=None).solve(weight, stats, SparsityPattern(ratio=0.4)).keep > 0
    assert torch.equal(got, costs.flatten().argsort().argsort().view(costs.shape) >= pruned_count(96, 0.4))
    assert torch.equal(Apt(block_size=None, mask="S").solve(weight, stats, SparsityPattern(ratio=0.4)).keep > 0, got)


@pytest.mark.parametrize(("ratio", "block"), [(0.5, 5), (0.7, 3), (0.33, None), (0.0, 4), (0.99, 1)])
def test_counts_are_exact(ratio, block):
    weight, stats = problem()
    got = Apt(block_size=block).solve(weight, stats, SparsityPattern(ratio=ratio)).keep
    assert int((got == 0).sum()) == pruned_count(96, ratio)


def test_dead_inputs_go_first_and_scales_drop_out():
    weight, stats = problem(dead=(0, 5))
    pattern = SparsityPattern(kept=2, group_size=4)
    expected = Apt(block_size=8).solve(weight, stats, pattern).keep
    assert not expected[:, [0, 5]].any()
    assert torch.equal(Apt(block_size=8).solve(weight * 1e30, stats, pattern).keep, expected)
    assert torch.equal(Apt(block_size=8).solve(weight * 2.0**-90, stats, pattern).keep, expected)


def test_fewer_tokens_than_inputs():
    weight, stats = problem(tokens=4)
    assert int(Apt(block_size=4).solve(weight, stats, SparsityPattern(kept=2, group_size=4)).keep.sum()) == 48


def test_too_many_choices():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 90, generator=generator)
    with pytest.raises(InvalidSettingError, match=r"601,080,390 choices.*mask: S"):
        Apt().solve(torch.ones(1, 32), LayerStats("up", 1, 1, gram=x @ x.T), SparsityPattern(kept=16, group_size=32))
