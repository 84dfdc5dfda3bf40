"""Experts in one parameter: packed one by one, and behaving as the tensor that they are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from packed_cases import IDS, family, packed, save, zero_half
from torch import Tensor, nn

import zpruner
from zpruner.errors import InvalidSettingError
from zpruner.packed.stack import PackedStack, stacks_of


def stack(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, PackedStack]:
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 20, 70, generator=draw)
    weight = weight.masked_fill(torch.rand(weight.shape, generator=draw) < 0.5, 0).to(dtype)
    found = PackedStack.of(weight)
    assert isinstance(found, PackedStack)
    return weight, found


def test_an_expert_is_taken_by_its_index_and_multiplied() -> None:
    weight, found = stack()
    assert (found.shape, found.dtype, found.ndim) == (weight.shape, weight.dtype, 3)
    for index in (2, torch.tensor(2)):
        expert = found[index]
        assert isinstance(expert, PackedStack)
        assert torch.equal(expert + 0, weight[2])
        for rows in (1, 5, 40):
            x, bias = torch.randn(rows, 70).bfloat16(), torch.randn(20).bfloat16()
            expected = x.double() @ weight[2].double().T + bias.double()
            assert torch.allclose(nn.functional.linear(x, expert, bias).double(), expected, rtol=2**-7, atol=0.02)
        assert torch.equal(torch.ones(1, 20).bfloat16() @ expert, torch.ones(1, 20).bfloat16() @ weight[2])


def test_whatever_else_is_asked_expands_it() -> None:
    weight, found = stack(torch.float32)
    parameter = nn.Parameter(found, requires_grad=False)
    assert isinstance(parameter, PackedStack)
    assert torch.equal(parameter.sum(2), weight.sum(2))
    assert torch.equal(torch.bmm(torch.ones(4, 1, 20), parameter), torch.bmm(torch.ones(4, 1, 20), weight))
    assert torch.equal(torch.cat([parameter, weight]), torch.cat([weight, weight]))
    assert torch.equal(parameter.to(torch.float64), weight.double())
    assert torch.equal(copy.deepcopy(parameter) + 0, weight)
    with pytest.raises(InvalidSettingError, match="writes into them"):
        parameter.mul_(2)
    assert "PackedStack((4, 20, 70)" in repr(found)


def test_what_would_be_no_smaller_stays_as_it_is() -> None:
    for weight in (torch.ones(2, 3, 64), torch.zeros(3, 64), torch.zeros(0, 3, 64)):
        assert PackedStack.of(weight) is weight


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mixture_keeps_its_experts_packed(name: str, tmp_path: Path) -> None:
    dense = save(zero_half(family(name)), tmp_path / "dense")
    packed(dense, tmp_path / "packed")
    before, _ = zpruner.load(dense, device="cpu")
    after, _ = zpruner.load(tmp_path / "packed", device="cpu")
    found, parameters = stacks_of(after), dict(before.named_parameters())
    assert set(found) == {key for key, value in parameters.items() if value.ndim == 3}
    held = sum(
        part.nbytes
        for each in found.values()
        for m in each.matrices
        for part in vars(m.parts).values()
        if part is not None
    )
    assert held < 0.75 * sum(parameters[key].nbytes for key in found)
    with torch.no_grad():
        for ids in (IDS, IDS[:1, :3]):
            one, two = (model(input_ids=ids, use_cache=False).logits for model in (before, after))
            assert torch.allclose(two, one, rtol=1e-4, atol=1e-5)
    after.dequantize()
    assert not stacks_of(after)
    assert all(torch.equal(value, parameters[key]) for key, value in after.named_parameters())
