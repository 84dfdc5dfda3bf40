"""Tiny random configurations of many model families. Only tests name families; the library names none."""

from __future__ import annotations

from typing import Any

import torch
from more_families import LATER, MORE, build_more
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 160
_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_NEOX = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_MAMBA = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}

_EXPERTS: dict[str, Any] = {**_LLAMA, "head_dim": 8, "num_experts_per_tok": 2}
_DEEPSEEK: dict[str, Any] = {
    **_LLAMA,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

# name -> (model_type, settings)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, _LLAMA) for name in ("llama", "mistral", "qwen2", "stablelm", "olmo2", "granite", "cohere")},
    **{name: (name, {**_LLAMA, "head_dim": 8}) for name in ("qwen3", "gemma2", "gemma3_text", "exaone4")},
    **{name: (name, _LLAMA) for name in ("starcoder2", "phi", "nemotron", "olmo")},
    "phi3": ("phi3", {**_LLAMA, "pad_token_id": 0}),
    "opt": (
        "opt",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "word_embed_proj_dim": 32,
        },
    ),
    "gpt2": ("gpt2", _GPT),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**_GPT, "rotary_dim": 4}),
    "gpt_neox": ("gpt_neox", _NEOX),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", {**_FALCON, "new_decoder_architecture": False, "multi_query": True}),
    "falcon_new": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
    "mamba": ("mamba", {**_MAMBA, "time_step_rank": 8}),
    "mamba2": ("mamba2", {**_MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 2, "expand": 2, "chunk_size": 16}),
    "falcon_h1": (
        "falcon_h1",
        {
            **_LLAMA,
            "head_dim": 8,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 16,
        },
    ),
    # mixtures of experts: stacked or not on disk, stored as (out, in) or (in, out), multiplied one by one or batched
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16}),
    "olmoe": ("olmoe", {**_EXPERTS, "num_experts": 4}),
    "granitemoe": ("granitemoe", {**_EXPERTS, "num_local_experts": 4}),
    "gpt_oss": ("gpt_oss", {**_EXPERTS, "num_local_experts": 4, "sliding_window": 16, "rope_scaling": None}),
    "llama4_text": ("llama4_text", {**_EXPERTS, "num_local_experts": 4, "intermediate_size_mlp": 64}),
    "jetmoe": ("jetmoe", {**_EXPERTS, "num_local_experts": 4, "kv_channels": 8}),
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "n_group": 2, "topk_group": 1}),
    "jamba": (
        "jamba",
        {
            **_EXPERTS,
            "num_experts": 4,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        },
    ),
}


OTHERS = (*MORE, *LATER)
ALL = (*FAMILIES, *OTHERS)


def build(family: str) -> PreTrainedModel:
    """Return a tiny float32 model with seeded random weights, none of them a tensor of zeros.

    Some families begin with branches that are multiplied by zero, which training changes.
    """
    model = _build(family) if family in FAMILIES else build_more(family)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=1e-3)
    return model


def _build(family: str) -> PreTrainedModel:
    model_type, settings = FAMILIES[family]
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2, **settings)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
