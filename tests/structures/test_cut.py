"""Cutting what has no effect changes no logit; damaged choices are refused."""

from __future__ import annotations

from functools import cache

import families
import pytest
import tiny
import torch
from structure_cases import logits, silenced, some

from zpruner.errors import InvalidPatternError, ShapeMismatchError
from zpruner.patterns import StructuredPattern, StructureKind
from zpruner.structures import Couplings, cut, find_couplings


@cache
def llama() -> Couplings:
    return find_couplings(tiny.llama())


@pytest.mark.parametrize("kind", [StructureKind.NEURONS, StructureKind.GROUPS, StructureKind.BLOCKS])
def test_cut_of_what_has_no_effect_changes_no_logit(kind: StructureKind) -> None:
    model, couplings = tiny.llama().eval(), llama()
    keep = some(couplings.of(kind))
    smaller = cut(model, couplings, keep)
    wanted = logits(silenced(model, couplings, keep))
    assert smaller.num_parameters() < model.num_parameters()
    assert (logits(smaller) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (logits(model) - wanted).abs().max() > 1e-3 * wanted.abs().max()


def test_all_kept_is_the_same_model() -> None:
    model, couplings = tiny.llama().eval(), llama()
    keep = {coupling.name: torch.ones(coupling.count, dtype=torch.bool) for coupling in couplings.found}
    same = cut(model, couplings, keep)
    assert same.config.to_dict() == {**model.config.to_dict(), "dtype": "float32"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(same.state_dict()[name], tensor)
        assert same.state_dict()[name].data_ptr() != tensor.data_ptr()
    assert same.lm_head.weight is same.model.embed_tokens.weight


def test_a_dense_model_has_no_experts() -> None:
    assert llama().why_not(StructureKind.NEURONS) is None
    with pytest.raises(InvalidPatternError, match="experts"):
        llama().of(StructureKind.EXPERTS)


def test_kept_numbers_follow_the_pattern() -> None:
    kept = llama().kept(StructuredPattern.parse("neurons:0.25 groups:0.5"))
    assert kept["model.layers.0.mlp.down_proj"] == 36
    assert kept["model.layers.2.self_attn.o_proj"] == 1
    with pytest.raises(InvalidPatternError, match="groups"):
        llama().kept(StructuredPattern.parse("groups:0.1"))


def test_damaged_choices_are_refused() -> None:
    couplings = llama()
    down = "model.layers.0.mlp.down_proj"
    keep = some(couplings.of(StructureKind.NEURONS))
    with pytest.raises(ShapeMismatchError, match=r"\(48,\)"):
        couplings.check(keep | {down: torch.ones(47, dtype=torch.bool)})
    with pytest.raises(ShapeMismatchError, match="bool"):
        couplings.check(keep | {down: torch.ones(48)})
    with pytest.raises(InvalidPatternError, match="none of 48"):
        couplings.check(keep | {down: torch.zeros(48, dtype=torch.bool)})
    with pytest.raises(InvalidPatternError, match="25 of 48 kept, and 24 of 48"):
        couplings.check({**keep, "model.layers.2.mlp.down_proj": torch.arange(48) < 25})
    with pytest.raises(InvalidPatternError, match="nothing to keep"):
        couplings.check({down: keep[down]})
    with pytest.raises(InvalidPatternError, match="down_proj"):
        couplings.check({f"{down}s": keep[down]})


@pytest.mark.parametrize("family", ["qwen2", "phi3", "gpt_oss"])
def test_groups_come_out_of_fused_and_biased_attention(family: str) -> None:
    model = families.build(family)
    couplings = find_couplings(model)
    keep = some(couplings.of(StructureKind.GROUPS))
    wanted = logits(silenced(model, couplings, keep))
    assert (logits(cut(model, couplings, keep)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
