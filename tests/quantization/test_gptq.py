"""Rounding with error hand-over against plain references in float64: GPTQ, on masks, and joint with SparseGPT."""

import pytest
import torch

from zpruner.errors import SolverError
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.quantization import Grid, choose_scales, group_of, per_weight
from zpruner.quantization.gptq import Gptq
from zpruner.quantization.nearest import Nearest
from zpruner.types import LayerStats, SparsityPattern

DAMPING = 0.01


def problem(out=6, width=160, tokens=500, seed=0, dead=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(width, width, generator=generator) @ torch.randn(width, tokens, generator=generator)
    x *= torch.rand(width, 1, generator=generator) + 0.1
    x[list(dead)] = 0.0
    gram = x @ x.T
    stats = LayerStats("up", tokens, 4, sq_sum=gram.diagonal().clone(), gram=gram)
    return torch.randn(out, width, generator=generator) * 0.02, stats


def hessian_of(stats):
    matrix = stats.gram.double() / stats.gram.double().diagonal().mean()
    dead = matrix.diagonal() == 0
    matrix.diagonal().add_(DAMPING)
    matrix.diagonal()[dead] = 1.0
    return matrix


def reference(weight, keep, scale, grid, matrix, order=None):
    """One column after another, each time with the inverse of what is left: no factor, no blocks."""
    order = range(weight.shape[1]) if order is None else order.tolist()
    left, values, result = list(order), weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    while left:
        j = left[0]
        whole = (values[:, j] / scale[:, j].double()).round().clamp(grid.low, grid.high)
        result[:, j] = torch.where(keep[:, j], whole * scale[:, j].double(), 0.0)
        inverse = torch.linalg.inv(matrix[left][:, left])
        error = (values[:, j] - result[:, j]) / inverse[0, 0]
        values[:, left] -= error[:, None] * inverse[0]
        left = left[1:]
    return result


def agree(found, expected, scale, share=0.005):
    """Nearly all weights are the same; one that lay between two grid points moves those after it a little."""
    off = (found.double() - expected).abs() > 0.01 * scale.abs().double()
    assert off.float().mean() <= share


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize("order", ["natural", None])
def test_with_nothing_pruned_it_is_gptq(bits, order):
    weight, stats = problem()
    rounding = Gptq(bits=bits, group=32, order=order, damping=DAMPING)
    keep = torch.ones_like(weight, dtype=torch.bool)
    found = rounding.round(weight, keep, stats)
    matrix = hessian_of(stats)
    columns = matrix.diagonal().float().argsort(descending=True, stable=True) if order is None else None
    scale = per_weight(choose_scales(weight, keep, rounding.grid, matrix.diagonal().float()), keep, rounding.grid)
    assert torch.equal(per_weight(found.scales, keep, rounding.grid), scale), "chosen before the sweep"
    expected = reference(weight, keep, scale, rounding.grid, matrix, columns)
    agree(found.dequantize(torch.float32), expected, scale, 0.02)


@pytest.mark.parametrize("group", ["row", 32])
def test_on_a_mask_the_error_ends_in_kept_weights(group):
    weight, stats = problem(seed=1)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) > 0.5
    weight = weight * keep
    rounding = Gptq(bits=4, group=group, order="natural", damping=DAMPING)
    found = rounding.round(weight, keep, stats)
    scale = per_weight(found.scales, keep, rounding.grid)
    expected = reference(weight, keep, torch.where(keep, scale, 1.0), rounding.grid, hessian_of(stats))
    agree(found.dequantize(torch.float32)[keep], expected[keep], scale[keep], 0.02)
    assert not found.integers[~keep].any()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_it_loses_less_than_rounding_to_nearest(share):
    weight, stats = problem(out=40, seed=3)
    keep = torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) >= share
    weight = weight * keep

    def loss(rounding):
        change = weight - rounding.round(weight, keep, stats).dequantize(torch.float32)
        return float(((change @ stats.gram) * change).sum())

    natural, activation = (loss(Gptq(bits=4, order=order)) for order in ("natural", "activation"))
    assert natural < 0.9 * loss(Nearest(bits=4))
    assert activation < 0.9 * loss(Nearest(bits=4))
    assert loss(Gptq(bits=8)) < 0.05 * natural < 0.05 * loss(Gptq(bits=3))


def test_inputs_that_were_never_seen_are_rounded_to_the_nearest():
    weight, stats = problem(dead=(3, 40))
    keep = torch.ones_like(weight, dtype=torch.bool)
    found = Gptq(bits=8).round(weight, keep, stats).dequantize(torch.float32)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((found - weight)[:, [3, 40]].abs() <= 0.51 * step).all()


def sparsegpt_reference(weight, matrix, pattern, grid, scale_of):
    """SparseGPT that rounds what it keeps, column by column in float64; the mask of M columns at a time."""
    values, keep = weight.double().clone(), torch.ones(weight.shape, dtype=torch.bool)
    width, step = weight.shape[1], pattern.group_size
    for start in range(0, width, step):
        factor = torch.linalg.cholesky(torch.linalg.inv(matrix[start:, start:])).T
        saliency = values[:, start : start + step].abs() / factor.diagonal()[:step]
        gone = saliency.argsort(1)[:, : step - pattern.kept]
        keep[:, start : start + step].scatter_(1, gone, False)
        for j in range(start, start + step):
            scale = scale_of(keep, j).double()
            whole = (values[:, j] / scale).round().clamp(grid.low, grid.high)
            value = torch.where(keep[:, j], whole * scale, 0.0)
            inverse = torch.linalg.inv(matrix[j:, j:])
            error = (values[:, j] - value) / inverse[0, 0]
            values[:, j:] -= error[:, None] * inverse[0]
            values[:, j] = value
    return values, keep


@pytest.mark.parametrize("group", ["row", 32])
def test_joint_with_the_mask_of_sparsegpt(group):
    weight, stats = problem(out=4, width=144, seed=5)
    grid, pattern = Grid(4, group), SparsityPattern.parse("2:4")
    found = SparseGPT(damping=DAMPING).solve_on_grid(weight, stats, pattern, grid)

    def scale_of(keep, j):
        group = group_of(keep, grid)[:, j].clamp_max(found.scales.shape[1] - 1)
        return found.scales.float().gather(1, group.unsqueeze(1)).squeeze(1)

    expected, keep = sparsegpt_reference(weight, hessian_of(stats), pattern, grid, scale_of)
    same = (keep == found.keep).float().mean()
    assert same > 0.98
    both = keep & found.keep
    scale = per_weight(found.scales, found.keep, grid)
    agree(found.dequantize(torch.float32)[both], expected[both], scale[both], 0.05)


@pytest.mark.parametrize("pattern", [0.0, 0.5, "2:4"])
@pytest.mark.parametrize("group", ["row", 128, 32])
def test_one_sweep_loses_less_than_pruning_then_rounding_to_nearest(pattern, group):
    weight, stats = problem(out=48, width=288, tokens=700, seed=3)
    solver, grid, wanted = SparseGPT(), Grid(3, group), SparsityPattern.parse(pattern)
    joint = solver.solve_on_grid(weight, stats, wanted, grid)
    assert joint.keep.float().mean() == pytest.approx(1 - wanted.sparsity, abs=0.01)
    plain = solver.solve(weight, stats, wanted)
    after = Nearest(bits=3, group=group).round(plain.weight, plain.keep, stats)

    def loss(found):
        change = weight - found.dequantize(torch.float32)
        return float(((change @ stats.gram) * change).sum())

    assert loss(joint) < loss(after)


def test_a_singular_hessian_is_refused():
    weight, stats = problem(tokens=40)
    with pytest.raises(SolverError, match="layer up"):
        Gptq(bits=4, damping=0.0).round(weight, torch.ones_like(weight, dtype=torch.bool), stats)
