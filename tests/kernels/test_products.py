"""Every instruction set that this machine has, against float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from kernel_cases import ISAS, SHAPES, kernels_of, packed, random_weight, within_rounding

from zpruner.kernels import DenseMatrix, PackedMatrix
from zpruner.kernels.library import VALUE_TYPES, Isa

DTYPES = tuple(VALUE_TYPES)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_of_odd_shapes_equal_those_in_float64(isa: Isa, dtype: torch.dtype) -> None:
    for rows, columns in SHAPES:
        for share in (0.0, 0.5, 0.8, 1.0):
            weight = random_weight(rows, columns, share, dtype)
            matrix = packed(weight, isa)
            dense = DenseMatrix(kernels_of(isa), weight)
            for x_dtype in {dtype, torch.float32}:
                x = torch.randn(1, columns, generator=torch.Generator().manual_seed(1)).to(x_dtype)
                assert within_rounding(matrix.multiply(x), x, weight)
                assert within_rounding(dense.multiply(x), x, weight)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batches_of_1_to_33_rows(isa: Isa, dtype: torch.dtype) -> None:
    weight = random_weight(7, 200, 0.5, dtype)
    bias = torch.randn(7).to(dtype)
    sparse, dense = packed(weight, isa), DenseMatrix(kernels_of(isa), weight)
    for batch in range(34):
        x = torch.randn(batch, 200).to(dtype)
        assert within_rounding(sparse.multiply(x, bias), x, weight, bias)
        assert within_rounding(dense.multiply(x, bias), x, weight, bias)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_expansion_gives_every_bit_back(isa: Isa, size: int) -> None:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size]
    for rows, columns in SHAPES:
        weight = torch.randint(0, 255, (rows * columns * size,), dtype=torch.uint8).view(whole).view(rows, columns)
        weight[torch.rand(rows, columns) < 0.5] = 0
        matrix = packed(weight, isa)
        assert torch.equal(matrix.expanded(0, rows), weight)
        assert torch.equal(matrix.expanded(rows // 3, rows // 2), weight[rows // 3 : rows // 2])


@pytest.mark.parametrize("size", [2, 8])
def test_what_caches_do_not_hold_is_expanded_past_them(size: int) -> None:
    """Of 16 MB; and where it begins at any byte, the same."""
    rows, columns = 1024, (16 << 20) // 1024 // size
    weight = torch.randint(1, 99, (rows, columns), dtype={2: torch.int16, 8: torch.int64}[size])
    weight[torch.rand(rows, columns) < 0.5] = 0
    matrix = packed(weight, ISAS[-1])
    room = torch.empty(weight.nbytes + 128, dtype=torch.uint8)
    for shift in (0, 8):
        start = -room.data_ptr() % 64 + shift
        out = room[start : start + weight.nbytes].view(weight.dtype).view(rows, columns)
        matrix.expand_into(out, 0, rows)
        assert torch.equal(out, weight)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
def test_weights_and_inputs_that_start_at_any_byte(isa: Isa) -> None:
    for dtype in DTYPES:
        weight = random_weight(9, 131, 0.5, dtype)
        room = torch.zeros(weight.numel() * weight.element_size() + 64, dtype=torch.uint8)
        sparse = packed(weight, isa)
        for start in range(0, 16, weight.element_size()):
            count = 3 * 131
            whole = room[start : start + count * weight.element_size()].view(dtype).view(3, 131)
            whole.copy_(torch.randn(3, 131))
            assert within_rounding(sparse.multiply(whole), whole, weight)
            values = torch.cat([torch.zeros(start // weight.element_size(), dtype=dtype), sparse.parts.values])
            parts = replace(sparse.parts, values=values[start // weight.element_size() :])
            again = PackedMatrix(kernels_of(isa), "w", sparse.layout, parts)
            assert within_rounding(again.multiply(whole), whole, weight)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
def test_rows_without_values_beside_full_ones(isa: Isa) -> None:
    weight = random_weight(12, 300, 0.4, torch.bfloat16)
    weight[::3] = 0
    weight[1] = torch.randn(300).bfloat16()
    x = torch.randn(2, 300).bfloat16()
    for threads in (1, 2, 5):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert within_rounding(packed(weight, isa).multiply(x), x, weight)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
def test_infinities_and_nan_reach_the_result_as_in_a_dense_product(isa: Isa) -> None:
    weight = torch.zeros(2, 64)
    weight[0, 3] = 2.0
    x = torch.ones(2, 64)
    x[1, 5] = torch.inf
    y = packed(weight, isa).multiply(x)
    assert y[0].tolist() == [2.0, 0.0]
    assert y[1].isnan().all()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name.lower())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_are_rounded_to_the_nearest_even(isa: Isa, dtype: torch.dtype) -> None:
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    numbers = numbers[numbers.isfinite() & ((numbers == 0) | (numbers.abs().float() > 1e-37))]
    weight = torch.zeros(1, 64, dtype=torch.float32)
    weight[0, 0] = 1.00390625  # half a step of bfloat16
    x = torch.zeros(numbers.numel(), 64, dtype=dtype)
    x[:, 0] = numbers
    expected = (numbers.float() * weight[0, 0]).to(dtype)
    assert torch.equal(packed(weight, isa).multiply(x)[:, 0], expected)
