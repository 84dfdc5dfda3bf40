"""The layers of a packed model: packed ones, and dense ones of 16 bits."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from zpruner.kernels import KERNEL_ROWS, Layout
from zpruner.kernels.library import LARGE_KERNEL_ROWS
from zpruner.packed.encode import nonzero, parts_of
from zpruner.packed.linear import FEW_ROWS, KernelLinear, PackedLinear, Scratch, restore_dense


def sparse(weight: Tensor, bias: Tensor | None = None) -> PackedLinear:
    parameter = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return PackedLinear("w", Layout.of(weight), parts_of(weight, nonzero(weight)), parameter)


def halved(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    return weight.masked_fill(torch.rand(rows, columns) < 0.5, 0).to(dtype)


@pytest.mark.parametrize("rows", [0, 1, 5, 32, 33, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_rows_in_any_shape(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpruner.packed.linear._PIECES", {1 << 62: 7 * 70 * 2})  # the last piece is a smaller one
    weight, bias = halved(45, 70, dtype), torch.randn(45).to(dtype)
    layer = sparse(weight, bias)
    x = torch.randn(1, rows, 70).to(dtype)
    with torch.no_grad():
        found = layer(x)
    expected = nn.functional.linear(x.double(), weight.double(), bias.double())
    assert found.shape == (1, rows, 45)
    assert torch.allclose(found.double(), expected, rtol=2**-7, atol=1e-2 if dtype is torch.bfloat16 else 1e-4)


def test_more_rows_of_large_weights_are_multiplied_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpruner.kernels.matrix.LARGE_BYTES", 2 * 45 * 70)
    expanded: list[int] = []
    for columns, most in ((70, LARGE_KERNEL_ROWS), (69, KERNEL_ROWS)):
        layer = sparse(halved(45, columns))
        monkeypatch.setattr(layer, "_expanded_product", lambda x: expanded.append(len(x)) or x.new_zeros(len(x), 45))
        for rows in (most, most + 1):
            layer(torch.randn(rows, columns).bfloat16())
    assert expanded == [LARGE_KERNEL_ROWS + 1, KERNEL_ROWS + 1]


def test_types_of_no_kernel_are_expanded() -> None:
    weight = halved(9, 70, torch.float64)
    x = torch.randn(2, 70, dtype=torch.float64)
    assert torch.allclose(sparse(weight)(x), x @ weight.T)


def test_room_is_kept_per_thread_and_no_part_of_a_copy() -> None:
    scratch = Scratch()
    first = scratch.take(3, 4, torch.float32)
    assert scratch.take(2, 8, torch.bfloat16).data_ptr() == first.data_ptr()
    others: list[int] = []
    thread = Thread(target=lambda: others.append(scratch.take(3, 4, torch.float32).data_ptr()))
    thread.start()
    thread.join()
    assert others[0] != first.data_ptr()
    layer = sparse(halved(5, 64))
    assert copy.deepcopy(layer).scratch is not layer.scratch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_dense_layers_of_16_bits_are_multiplied_by_the_kernels(dtype: torch.dtype, rows: int) -> None:
    layer = nn.Linear(70, 30).to(dtype).requires_grad_(False)
    x = torch.randn(1, rows, 70).to(dtype)
    expected = layer(x)
    layer.__class__ = KernelLinear
    found = layer(x)
    assert torch.allclose(found.float(), expected.float(), rtol=2**-7, atol=2**-7)
    assert torch.equal(found, expected) or (rows <= FEW_ROWS and dtype is not torch.float32)
    layer.weight.mul_(2)  # nothing is remembered
    assert torch.allclose((layer(x) - layer.bias).float(), 2 * (found - layer.bias).float(), rtol=0.05, atol=0.05)
    model = nn.Sequential(layer, sparse(halved(5, 30, dtype)))
    restore_dense(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Linear]


def test_processors_without_bfloat16_multiply_by_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpruner.packed.linear.multiplies_bfloat16", lambda _: False)
    weight = halved(20, 70)
    head = nn.Linear(70, 20, bias=False).bfloat16().requires_grad_(False)
    head.weight.copy_(weight)
    head.__class__ = KernelLinear
    x = torch.randn(40, 70).bfloat16()
    expected = (x.float() @ weight.float().T).bfloat16()
    for layer in (head, sparse(weight)):
        assert torch.equal(layer(x), expected)
