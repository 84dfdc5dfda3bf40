"""What may change places: any order of it leaves the model's function, in float64; what may not is left."""

from __future__ import annotations

from copy import deepcopy

import families
import pytest
import tiny
import torch
from structure_cases import logits
from transformers import PreTrainedModel

from zpruner.errors import InvalidPatternError, ShapeMismatchError
from zpruner.model import take_inventory
from zpruner.patterns import Permutation
from zpruner.structures import MOVABLE, Reordering, Symmetries, Symmetry, find_symmetries

FAST = ("llama", "gpt2", "opt", "qwen2", "qwen3", "phi3", "gpt_neox", "falcon", "mixtral", "gemma2", "deepseek_v2")
"""Grouped, shared and fused values; transposed weights; biases; gated and plain MLPs; q/k norms; experts."""
LEAST = {Permutation.NEURONS: 130, Permutation.HEADS: 120, Permutation.STREAM: 90}


def build(family: str) -> PreTrainedModel:
    return tiny.build(family) if family in tiny.FAMILIES else families.build(family)


def anywhere(symmetry: Symmetry, seed: int) -> torch.Tensor:
    """Return a random order, each item in its division."""
    generator = torch.Generator().manual_seed(seed)
    size = symmetry.count // symmetry.divisions
    return torch.cat([torch.randperm(size, generator=generator) + d * size for d in range(symmetry.divisions)])


def check(model: PreTrainedModel, rounding: float) -> Symmetries:
    """Put everything that may move of a model anywhere, and compare logits."""
    symmetries = find_symmetries(model)
    orders = {symmetry.name: anywhere(symmetry, seed) for seed, symmetry in enumerate(symmetries.found)}
    moved = deepcopy(model)
    order = Reordering(symmetries.found, orders)
    order.move(order.moves, moved.get_parameter)
    if orders:
        assert any(not torch.equal(moved.get_parameter(name), value) for name, value in model.named_parameters())
    wanted = logits(model)
    assert (logits(moved) - wanted).abs().max() <= rounding * wanted.abs().max()
    return symmetries


@pytest.mark.parametrize("family", FAST)
def test_any_order_leaves_the_logits(family: str) -> None:
    model = build(family)
    if all(layer.parts == 1 for layer in take_inventory(model).layers):  # torch multiplies experts in float32
        model = model.double()
    symmetries = check(model, 1e-6)  # norms are taken in float32 all the same
    for kind in MOVABLE:
        assert symmetries.of(kind), kind


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_any_order_leaves_the_logits_of_every_family() -> None:
    found = [check(build(family), 1e-4) for family in families.ALL]  # some run in float32 alone
    print({kind.value: sum(kind not in symmetries.missing for symmetries in found) for kind in LEAST})
    for kind, least in LEAST.items():
        assert sum(kind not in symmetries.missing for symmetries in found) >= least, kind


def test_value_dimensions_move_within_what_shares_them() -> None:
    symmetries = {s.name: s for s in find_symmetries(tiny.build("llama")).of(Permutation.HEADS)}
    o = symmetries["model.layers.0.self_attn.o_proj"]  # 4 query heads of 8 read 2 key-value heads
    assert (o.count, o.divisions, o.length) == (16, 2, 8)
    assert [s.tensor for s in o.writes] == ["model.layers.0.self_attn.v_proj.weight"]
    assert o.reads[0].index[3].tolist() == [3, 11]
    assert o.reads[0].index[8].tolist() == [16, 24]
    with pytest.raises(ShapeMismatchError, match="every item once, each in its run of 8"):
        o.checked(torch.arange(16).flip(0))  # across key-value heads
    with pytest.raises(ShapeMismatchError, match="int64 of shape"):
        o.checked(torch.zeros(16, dtype=torch.int64))


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bitnet", Permutation.NEURONS),  # a norm over all neurons, another over all values
        ("bitnet", Permutation.HEADS),
        ("diffllama", Permutation.HEADS),
        ("xglm", Permutation.STREAM),  # places that no parameter has
    ],
)
def test_what_depends_on_its_order_is_refused(family: str, kind: Permutation) -> None:
    with pytest.raises(InvalidPatternError, match=f"permute '{kind}': got .* order counts, .* Leave {kind} out"):
        find_symmetries(families.build(family)).of(kind)
