"""Further families that transformers knows: their own settings, with small numbers in place of the large ones."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 160
_SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_dim", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size"), 64),
    **dict.fromkeys(("n_positions", "max_position_embeddings", "max_seq_len"), 128),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "index_head_dim"), 8),
    **dict.fromkeys(("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_key_value_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("sliding_window", "attention_window_size"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "state_size", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_state", "mamba_num_heads", "mamba_head_dim", "n_mamba_heads", "mamba_n_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_dt_rank", "time_step_rank", "laurel_rank", "adapter_rank"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input", "index_topk", "o_lora_rank"), 8),
    **dict.fromkeys(("n_groups", "mamba_n_groups", "n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "moe_layer_start_index", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("index_n_heads", "o_groups"), 2),
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "rotary_dim": 4,
    "block_auto_adjust_ff_dim": False,
}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT = {"num_key_value_heads": 4}
_OPT = {"word_embed_proj_dim": 16, "do_layer_norm_before": False}

# name -> settings that are not in _SMALL; where a name is not a model_type, its model_type
MORE: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("gpt_bigcode", "xglm", "biogpt", "persimmon", "gemma", "gemma3n_text", "gemma4_text")},
    **{name: {} for name in ("glm", "glm4", "glm4_moe", "helium", "ernie4_5", "ernie4_5_moe", "smollm3", "seed_oss")},
    **{name: {} for name in ("arcee", "dots1", "hunyuan_v1_dense", "hunyuan_v1_moe", "bitnet", "diffllama", "doge")},
    **{name: {} for name in ("nemotron_h", "rwkv", "xlstm", "qwen2_moe", "phimoe", "granitemoeshared", "minimax")},
    **{name: {} for name in ("apertus", "vaultgemma", "falcon_mamba", "cohere2", "cohere2_moe", "cwm", "exaone_moe")},
    **{name: {} for name in ("flex_olmo", "granite_swa", "hyperclovax", "jais2", "minimax_m2", "ministral")},
    **{name: {} for name in ("ministral3", "modernbert-decoder", "nanochat", "olmo3", "openai-gpt", "deepseek_v4")},
    **{name: {} for name in ("afmoe", "aria_text", "gpt_neox_japanese", "qwen3_5_moe_text")},
    **dict.fromkeys(("glm4_moe_lite", "deepseek_v32", "minicpm3"), _LATENT),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "olmo_hybrid"), _MIXED),
    "opt, narrow embedding": {"model_type": "opt", **_OPT},
    "gpt2, wide and scaled": {"model_type": "gpt2", "n_inner": 96, "scale_attn_by_inverse_layer_idx": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "longcat_flash": {**_LATENT, "n_routed_experts": 4, "zero_expert_num": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
        "num_key_value_heads": 4,
    },
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "num_key_value_heads": 4, "mamba_ngroups": 1},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
}


def build_more(family: str) -> PreTrainedModel:
    """Return a tiny float32 model with seeded random weights."""
    settings = {"model_type": family, **MORE[family]}
    model_type = settings.pop("model_type")
    usual = AutoConfig.for_model(model_type)
    known = {name for kind in type(usual).__mro__ for name in vars(kind).get("__annotations__", {})}
    small = {name: value for name, value in _SMALL.items() if name in known and name not in usual.attribute_map}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**tokens, **small, **settings})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
