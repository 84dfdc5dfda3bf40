"""Operations per token: of dense models twice their matrices, of mixtures what the router lets a token meet."""

from __future__ import annotations

import families
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zpruner.evaluate import flops_per_token
from zpruner.model import take_inventory


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma2"])
def test_of_a_dense_model_it_is_twice_its_matrices_and_its_head(family: str) -> None:
    model = families.build(family)
    inside = sum(layer.out_features * layer.in_features for layer in take_inventory(model).layers)
    assert flops_per_token(model.config) == 2 * (inside + model.get_output_embeddings().weight.numel())


@pytest.mark.parametrize(("family", "routed"), [("mixtral", 2), pytest.param("qwen3_moe", 2, marks=pytest.mark.slow)])
def test_of_a_mixture_the_chosen_experts_count(family: str, routed: int) -> None:
    model = families.build(family)
    layers = take_inventory(model).layers
    shared = sum(layer.out_features * layer.in_features for layer in layers if not layer.pool)
    experts = sum(layer.out_features * layer.in_features * routed / layer.parts for layer in layers if layer.pool)
    blocks = model.config.num_hidden_layers
    routers = blocks * model.config.hidden_size * model.config.num_local_experts
    assert flops_per_token(model.config) == 2 * (shared + experts + routers + model.lm_head.weight.numel())


def test_it_costs_no_memory_and_little_time() -> None:
    """A model of 70 billion parameters: one of its 80 blocks runs, on zeros that are never written."""
    config = AutoConfig.for_model(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=32000,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    whole = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert flops_per_token(config) == 2 * (whole - 32000 * 8192)
