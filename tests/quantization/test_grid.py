"""Grids, groups of kept weights, scales by weighted least squares, and the arithmetic of dequantising."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.errors import NonFiniteError, ShapeMismatchError
from zpruner.quantization import (
    Grid,
    QuantizedLayer,
    choose_scales,
    group_counts,
    group_of,
    nearest_integers,
    per_weight,
)

GRIDS = [Grid(bits, group) for bits in (8, 4, 3) for group in ("row", 128, 32)]


def random_weight(out, width, seed, share=0.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, width, generator=generator), torch.rand(out, width, generator=generator) > share


def rounded(weight, keep, grid, energy=None):
    scales = choose_scales(weight, keep, grid, energy)
    integers = nearest_integers(weight, per_weight(scales, keep, grid), grid).to(torch.int8)
    return QuantizedLayer("up", grid, integers, scales, keep)


def test_groups_count_kept_weights_in_the_order_of_columns():
    keep = torch.ones(2, 70, dtype=torch.bool)
    keep[0, :5] = False
    grid = Grid(4, 32)
    index = group_of(keep, grid)
    assert index[0, 5:].tolist() == [0] * 32 + [1] * 32 + [2]
    assert index[1].tolist() == [0] * 32 + [1] * 32 + [2] * 6
    keep[1, 64:] = False
    keep[0] = False
    assert group_counts(keep, grid).tolist() == [0, 2]


@pytest.mark.parametrize(("bits", "ends"), [(8, (-127, 127)), (4, (-8, 7)), (3, (-4, 3))])
def test_the_ends_of_a_grid(bits, ends):
    far = nearest_integers(torch.tensor([-1e6, 1e6, 2.5, 3.5]), torch.tensor(1.0), Grid(bits))
    assert (int(far[0]), int(far[1])) == ends
    assert far[2:].tolist() == [2.0, min(4.0, float(ends[1]))]
    assert not nearest_integers(torch.tensor([3.0]), torch.tensor(0.0), Grid(bits)).any()


def test_the_arithmetic_is_one_rounded_product():
    scales = torch.tensor([[0.0123456]])
    integers = torch.tensor([[-127, 3, 0, 101]], dtype=torch.int8)
    layer = QuantizedLayer("up", Grid(8), integers, scales, torch.tensor([[True, True, True, True]]))
    exact = integers.double() * scales.double()
    assert torch.equal(layer.dequantize(torch.bfloat16), exact.float().to(torch.bfloat16))
    assert torch.equal(layer.dequantize(torch.float32), exact.float())


def test_no_negative_zero_comes_out():
    integers = torch.tensor([[0, -1, 0]], dtype=torch.int8)
    scales = torch.tensor([[-1e-9]], dtype=torch.bfloat16)
    layer = QuantizedLayer("up", Grid(4, 32), integers, scales, torch.tensor([[True, True, False]]))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert not (layer.dequantize(dtype).signbit() & (layer.dequantize(dtype) == 0)).any()
    assert layer.dequantize(torch.float32)[0, 1] > 0


@settings(max_examples=40, deadline=None)
@given(
    grid=st.sampled_from(GRIDS),
    out=st.integers(1, 5),
    width=st.integers(1, 150),
    share=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 999),
    power=st.sampled_from([-30, 0, 30]),
)
def test_any_weight_is_quantised(grid, out, width, share, seed, power):
    weight, keep = random_weight(out, width, seed, share)
    keep = keep if share else torch.ones_like(keep)
    layer = rounded(weight * 10.0**power, keep, grid)
    found = layer.dequantize(torch.float32)
    assert not found[~keep].any()
    error = (weight * 10.0**power - found)[keep].double().square().sum()
    assert error <= 0.25 * (weight * 10.0**power)[keep].double().square().sum()


@settings(max_examples=25, deadline=None)
@given(grid=st.sampled_from(GRIDS), seed=st.integers(0, 999))
def test_what_lies_on_a_grid_stays(grid, seed):
    weight, keep = random_weight(4, 96, seed)
    integers = torch.randint(grid.low, grid.high + 1, weight.shape, generator=torch.Generator().manual_seed(seed))
    group = group_of(keep, grid)
    scale = torch.rand(4, 8, generator=torch.Generator().manual_seed(seed)).to(grid.scale_dtype).float() + 0.5
    scale = scale.to(grid.scale_dtype).float()
    weight = integers * scale.gather(1, group)
    first = (keep.cumsum(1) - 1) % grid.size(96) == 0
    weight = torch.where(first & keep, grid.high * scale.gather(1, group), weight)
    assert torch.allclose(rounded(weight, keep, grid).dequantize(torch.float32), weight * keep, rtol=1e-2)


@pytest.mark.parametrize("bits", [4, 3])
def test_no_scale_of_a_fine_search_is_much_better(bits):
    weight, keep = random_weight(6, 64, 3, 0.0)
    keep = torch.ones_like(keep)
    energy = torch.rand(64, generator=torch.Generator().manual_seed(1)).square() * 9 + 0.01
    grid = Grid(bits, "row")
    got = (energy * (weight - rounded(weight, keep, grid, energy).dequantize(torch.float32)).square()).sum(1)
    tried = torch.linspace(-0.9, 0.9, 4001).view(-1, 1, 1)
    errors = (energy * (weight - nearest_integers(weight, tried, grid) * tried).square()).sum(2)
    assert got.sum() <= 1.03 * errors.amin(0).sum()
    unweighted = (energy * (weight - rounded(weight, keep, grid).dequantize(torch.float32)).square()).sum()
    assert got.sum() < unweighted


def test_what_does_not_belong_together_is_refused():
    keep = torch.tensor([[True, True, False]])
    whole = torch.tensor([[1, -2, 0]], dtype=torch.int8)
    scales = torch.tensor([[0.5]])
    QuantizedLayer("up", Grid(4), whole, scales, keep)
    for integers, found in ((whole * 5, scales), (whole + 1, scales), (whole.int(), scales), (whole, scales[:, :0])):
        with pytest.raises(ShapeMismatchError, match="quantised layer up"):
            QuantizedLayer("up", Grid(4), integers, found, keep)
    with pytest.raises(NonFiniteError):
        QuantizedLayer("up", Grid(4), whole, scales * torch.inf, keep)
    huge = QuantizedLayer("up", Grid(4), whole, torch.tensor([[1e30]]), keep)
    with pytest.raises(NonFiniteError, match="a number beyond the largest"):
        huge.dequantize(torch.float16)
