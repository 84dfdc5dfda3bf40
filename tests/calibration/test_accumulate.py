import sys
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zpruner.calibration.accumulate import InputAccumulator
from zpruner.types import CHANNEL_SUMS, Stat

CPU = torch.device("cpu")


def accumulated(batches, stats=tiny.WITH_GRAM):
    found = InputAccumulator(batches[0].shape[-1], stats, CPU)
    for batch in batches:
        found.add(batch)
    return found


def check(found, inputs, rtol=1e-6):
    X = torch.cat([batch.reshape(-1, batch.shape[-1]) for batch in inputs]).double()
    assert found.tokens == X.shape[0]
    torch.testing.assert_close(found.state()["sq_sum"], X.square().sum(0), rtol=rtol, atol=0)
    torch.testing.assert_close(found.state()["abs_sum"], X.abs().sum(0), rtol=rtol, atol=0)
    assert torch.equal(found.state()["max_abs"].double(), X.abs().amax(0))
    if (gram := found.state().get("gram")) is not None:
        assert gram.dtype == torch.float32
        G = X.T @ X
        scale = G.diagonal().sqrt()
        worst = ((gram.double() - G).abs() / torch.outer(scale, scale)).max()
        assert worst < 1e-5


@settings(max_examples=30, deadline=None)
@given(
    width=st.integers(1, 20),
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 50),
)
def test_sums_equal_those_of_all_tokens_at_once(width, shapes, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = [(torch.randn(*shape, width, generator=generator) * 3 + 1).to(dtype) for shape in shapes]
    check(accumulated(batches), batches)


def test_more_tokens_than_are_converted_at_a_time():
    torch.manual_seed(0)
    batches = [torch.randn(2, 20_000, 3) + 0.5]
    check(accumulated(batches), batches)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_gram_matrix_is_that_of_exact_products(dtype):
    """Half-precision products of float32 numbers would be off by 1e-3; those of bfloat16 numbers are exact."""
    torch.manual_seed(0)
    inputs = (torch.randn(3000, 64) * torch.logspace(-2, 2, 64)).to(dtype)
    before = torch.get_float32_matmul_precision()
    check(accumulated([inputs]), [inputs])
    assert torch.get_float32_matmul_precision() == before


def test_a_precision_that_the_caller_chose_is_left_as_it_was():
    """torch refuses to say the one for all backends once that of one is set."""
    backend: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
        check(accumulated([inputs]), [inputs])
        assert backend.fp32_precision == "tf32"
    finally:
        backend.fp32_precision = before


def test_a_precision_that_the_caller_chose_for_all_backends_still_holds_for_all():
    """Asked what it uses, a backend that follows the setting for all answers with that."""
    everyone: Any = torch.backends
    backend = everyone.mkldnn.matmul
    everyone.fp32_precision = "ieee"
    try:
        accumulated([torch.ones(4, 8).bfloat16()])
        everyone.fp32_precision = "tf32"
        assert backend.fp32_precision == "tf32"
    finally:
        everyone.fp32_precision = "none"


@pytest.mark.parametrize("panel", [1, 5, 16, 31, 32, 33])
def test_a_gram_matrix_computed_in_panels(monkeypatch, panel):
    monkeypatch.setattr(sys.modules[InputAccumulator.__module__], "_PANEL", panel)
    batches = list((torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(1)) + 0.5).unbind())
    check(accumulated(batches), batches)


def test_without_a_gram_matrix():
    inputs = torch.ones(4, 3)
    found = accumulated([inputs], CHANNEL_SUMS)
    assert sorted(found.state()) == ["abs_sum", "max_abs", "sq_sum"]
    check(found, [inputs])


@pytest.mark.parametrize("stats", [tiny.WITH_GRAM, CHANNEL_SUMS, {Stat.GRAM}, {Stat.MAX_ABS}])
def test_a_restored_accumulator_goes_on_to_identical_sums(stats):
    torch.manual_seed(0)
    first, second = torch.randn(50, 7), torch.randn(30, 7)
    whole = accumulated([first, second], stats)
    half = accumulated([first], stats)
    again = InputAccumulator.restore({k: v.clone() for k, v in half.state().items()}, half.tokens, CPU)
    again.add(second)
    assert again.tokens == whole.tokens == 80
    assert all(torch.equal(value, whole.state()[name]) for name, value in again.state().items())
    assert again.state().keys() == whole.state().keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(value):
    inputs = torch.ones(4, 3)
    inputs[2, 1] = value
    found = accumulated([inputs, torch.ones(4, 3)])
    assert torch.isfinite(found.state()["sq_sum"]).tolist() == [True, False, True]
    assert torch.isfinite(found.state()["max_abs"]).tolist() == [True, False, True]


@pytest.mark.parametrize("stats", [{Stat.SQ_SUM}, {Stat.GRAM}, {Stat.MAX_ABS}, tiny.EVERY])
def test_only_the_sums_asked_for_are_taken_and_tell_what_is_not_finite(stats):
    found = accumulated([torch.ones(4, 3)], stats)
    assert set(found.state()) == {stat.value for stat in stats} - {"grad_sq"}
    assert found.finite()
    found.add(torch.tensor([[1.0, float("nan"), 1.0]]))
    assert not found.finite()


@pytest.mark.parametrize("shapes", [[(3, 7)], [(1, 1)], [(2, 5), (1, 8), (3, 3)]])
def test_both_gram_matrices_together_are_those_taken_apart(shapes):
    batches = [torch.randn(*shape, 11) for shape in shapes]
    whole, half = (accumulated(batches, {stat}).state()[stat.value] for stat in (Stat.GRAM, Stat.GRAM_HALF))
    both = accumulated(batches, {Stat.GRAM, Stat.GRAM_HALF}).state()
    torch.testing.assert_close(both["gram"], whole)
    torch.testing.assert_close(both["gram_half"], half)
    first = torch.cat([batch.reshape(-1, 11)[: batch.shape[0] * batch.shape[1] // 2] for batch in batches])
    torch.testing.assert_close(half, first.T @ first)
