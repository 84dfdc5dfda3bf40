"""bfloat16 linear layers by float32 products."""

import pytest
import tiny
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from zpruner.model.bfloat16 import WideLinear, linear, widen_products


def operands(bias=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5, 64), (7, 64), (7,)]
    x, w, b = (torch.randn(shape, generator=generator).bfloat16() for shape in shapes)
    return x, w, b if bias else None


@pytest.mark.parametrize("bias", [True, False])
def test_the_exact_result_rounded_once(bias):
    x, w, b = operands(bias)
    exact = nn.functional.linear(x.double(), w.double(), None if b is None else b.double())
    got = linear(x, w, b)
    assert got.dtype == torch.bfloat16
    assert got.shape == (3, 5, 7)
    # Within half a unit of the last of 8 significant bits, and what float32 sums add.
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("piece", [64, 3 * 64, 7 * 64])
def test_pieces_of_the_weight_make_the_same_product(bias, piece, monkeypatch):
    x, w, b = operands(bias)
    whole = linear(x, w, b)
    monkeypatch.setattr("zpruner.model.bfloat16._PIECE", piece)
    assert torch.allclose(linear(x, w, b).float(), whole.float(), rtol=2**-7)
    assert torch.allclose(linear(x[0, 0], w, b).float(), whole[0, 0].float(), rtol=2**-7)


@pytest.mark.parametrize("bias", [True, False])
def test_no_token_at_all(bias):
    _, w, b = operands(bias)
    assert linear(torch.empty(0, 64, dtype=torch.bfloat16), w, b).shape == (0, 7)


def test_other_dtypes_are_left_to_torch():
    x, w, b = (t.float() for t in operands())
    assert torch.equal(linear(x, w, b), nn.functional.linear(x, w, b))


def test_whoever_intercepts_products_sees_the_weight_itself():
    x, w, b = operands()
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func.__name__ == "linear":
                seen.append((args[0].data_ptr(), args[1].data_ptr()))
            return func(*args, **(kwargs or {}))

    with Watch():
        watched = linear(x, w, b)
    assert seen[0] == (x.data_ptr(), w.data_ptr())
    assert torch.equal(watched, linear(x, w, b))


def test_a_widened_model_computes_what_torch_computes():
    model = tiny.build("llama").bfloat16()
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before = model(input_ids=ids).logits.float()
        widen_products(model)
        after = model(input_ids=ids).logits.float()
    assert sum(isinstance(module, WideLinear) for module in model.modules()) == 3 * 7 + 1
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)
    assert (after - before).abs().max() < 0.03 * before.abs().max()


@pytest.mark.parametrize("piece", [2 * 64, 1 << 21])
def test_gradients_reach_the_weights(piece, monkeypatch):
    monkeypatch.setattr("zpruner.model.bfloat16._PIECE", piece)
    x, w, b = operands()
    weight = w.clone().requires_grad_()
    linear(x, weight, b).float().square().sum().backward()
    reference = w.double().requires_grad_()
    nn.functional.linear(x.double(), reference, b.double()).square().sum().backward()
    assert (weight.grad.double() - reference.grad).abs().max() < 0.02 * reference.grad.abs().max()
