"""Products of float32 matrices, whichever library multiplies them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zpruner.runtime.products import add_matmul, matmul

SIZES = st.integers(0, 70)


def numbers(*shape: int, seed: int, transposed: bool) -> torch.Tensor:
    """Return a matrix, contiguous or seen by columns, inside a wider one."""
    rows, columns = shape[::-1] if transposed else shape
    found = torch.randn(rows, columns + 3, generator=torch.Generator().manual_seed(seed))[:, :columns]
    return found.mT if transposed else found


@given(m=SIZES, k=SIZES, n=SIZES, left=st.booleans(), right=st.booleans(), seed=st.integers(0, 1 << 20))
def test_a_product_is_as_exact_as_float32_allows_whatever_the_layout(
    m: int, k: int, n: int, left: bool, right: bool, seed: int
) -> None:
    a, b = numbers(m, k, seed=seed, transposed=left), numbers(k, n, seed=seed + 1, transposed=right)
    found, exact = matmul(a, b), a.double() @ b.double()
    assert found.dtype == torch.float32
    assert found.shape == (m, n)
    # Of sums of k products, each rounded once or twice.
    bound = 2e-7 * (k + 1) ** 0.5 * (a.double().abs() @ b.double().abs()) + 1e-30
    assert bool(((found - exact).abs() <= bound).all())

    target = numbers(m, n, seed=seed + 2, transposed=True)
    expected = target.double() - 2 * exact
    assert add_matmul(target, a, b, alpha=-2) is target
    assert bool(((target - expected).abs() <= 2 * bound + 2e-7 * (expected.abs() + 1)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_are_multiplied_as_torch_does(dtype: torch.dtype) -> None:
    a, b = torch.randn(5, 7).to(dtype), torch.randn(7, 3).to(dtype)
    assert torch.equal(matmul(a, b), a @ b)


def test_what_is_not_finite_stays_so() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    a[1, 2], b[0, 4] = torch.nan, torch.inf
    assert torch.equal(matmul(a, b).isfinite(), (a @ b).isfinite())
