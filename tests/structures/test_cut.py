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


@cache
def of_family(name: str) -> Couplings:
    return find_couplings(families.build(name))


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


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_groups_come_out_of_fused_and_biased_attention(family: str) -> None:
    model, couplings = families.build(family), of_family(family)
    keep = some(couplings.of(StructureKind.GROUPS))
    wanted = logits(silenced(model, couplings, keep))
    assert (logits(cut(model, couplings, keep)) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_a_mixture_without_experts_is_one_whose_router_avoids_them(family: str) -> None:
    model, couplings = families.build(family), of_family(family)
    keep = some(couplings.of(StructureKind.EXPERTS))
    smaller = cut(model, couplings, keep)
    for coupling in couplings.of(StructureKind.EXPERTS):
        mixture = model.get_submodule(coupling.name)
        kept = keep[coupling.name]
        for name, tensor in smaller.get_submodule(coupling.name).named_parameters():
            assert torch.equal(tensor, mixture.get_parameter(name)[kept])
        router = next(s for s in coupling.writes if not s.tensor.startswith(f"{coupling.name}."))
        assert torch.equal(smaller.get_parameter(router.tensor), model.get_parameter(router.tensor)[kept])
    assert torch.isfinite(logits(smaller)).all()


def test_experts_that_a_router_divides_go_from_every_division() -> None:
    couplings = of_family("deepseek_v3")
    mixture = couplings.of(StructureKind.EXPERTS)[0]
    assert (mixture.divisions, mixture.step) == (2, 2)
    with pytest.raises(InvalidPatternError, match="4, 2 kept in its 2 divisions"):
        couplings.check({mixture.name: torch.arange(8) < 6})


def test_blocks_that_compute_by_their_place_stay() -> None:
    assert of_family("gpt2, wide and scaled").why_not(StructureKind.BLOCKS) is not None


@pytest.mark.slow
def test_keys_that_blocks_share_stay() -> None:
    assert of_family("gemma3n, shared keys").why_not(StructureKind.GROUPS) is not None


def test_what_is_ignored_stays() -> None:
    couplings = find_couplings(tiny.llama(), ignore=["*.0.mlp.up_proj"])
    assert couplings.why_not(StructureKind.NEURONS) == "model.layers.0.mlp.up_proj under model.ignore"
    assert couplings.why_not(StructureKind.GROUPS) is None


def test_looking_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = tiny.llama()
    settings, before = model.config.to_dict(), torch.get_rng_state()
    with torch.inference_mode():
        found = find_couplings(model).found
    assert model.config.to_dict() == settings
    assert torch.equal(torch.get_rng_state(), before)
    assert [c.name for c in found] == [c.name for c in llama().found]
