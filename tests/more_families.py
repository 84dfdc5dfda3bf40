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
_SHARED_KEYS = {
    "num_hidden_layers": 4,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
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
    "gemma3n, shared keys": {"model_type": "gemma3n_text", **_SHARED_KEYS},
    "gemma4, shared keys": {"model_type": "gemma4_text", **_SHARED_KEYS},
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

_ALSO_SMALL: dict[str, Any] = {
    **dict.fromkeys(("num_shared_experts", "topk_group", "num_expert_group"), 1),
    **dict.fromkeys(("swa_num_key_value_heads", "num_experts_per_token"), 2),
    **dict.fromkeys(("linear_num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("linear_head_dim", "gated_norm_rank", "swa_head_dim", "d_rel", "dim_head"), 8),
    **dict.fromkeys(("rel_extent", "sliding_window_size", "router_hidden_size"), 16),
    **dict.fromkeys(("dff", "dim_ff", "shared_experts_intermediate_size", "dense_intermediate_size"), 64),
}
_DENSE_THEN_SPARSE = {"mlp_layer_types": ["dense", "sparse"]}
_INDEXED = {**_LATENT, **_DENSE_THEN_SPARSE, "layer_types": ["indexed_attention"] * 2}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
_FOUR_EXPERTS = {"num_experts": 4, "num_experts_per_token": 2}
_DECODER = {"is_decoder": True, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# the same, with settings that are in neither; the last are encoders run as decoders
LATER: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("ctrl", "gpt-sw3", "internlm3", "iquestcoder", "solar_open")},
    "axk1": {**_LATENT, **_DENSE_THEN_SPARSE, "n_group": 2},
    "axk2": {**_LATENT, **_DENSE_THEN_SPARSE},
    "bailing_hybrid": {
        **_LATENT,
        **_MIXED,
        **_DENSE_THEN_SPARSE,
        **_FOUR_EXPERTS,
        "num_expert_group": 2,
        "num_nextn_predict_layers": 0,
    },
    "beam": {**_DENSE_THEN_SPARSE, **_SLIDING, "n_group": 2},
    "cohere_compass_text": {
        **_LATENT,
        **_SLIDING,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "cpmant": {
        "position_bias_num_buckets": 32,
        "position_bias_max_distance": 64,
        "prompt_length": 4,
        "init_std": 0.1,
    },
    "dots3_note_text": {
        **_INDEXED,
        "layer_types": ["indexed_attention", "sliding_attention"],
        "per_layer_config": {},
        "head_dim": 16,
    },
    "flint": {**_SLIDING, "mlp_only_layers": [0]},
    "gemma4_unified_text": {**_SLIDING, "per_layer_config": {}},
    "glm_moe_dsa": {**_INDEXED, "indexer_types": ["full", "shared"]},
    "granitemoe_swa": {**_SLIDING, "layer_rope_theta": [10000.0, 10000.0]},
    "hy_v3": _DENSE_THEN_SPARSE,
    "hy_v4": {**_INDEXED, "indexer_types": ["full", "shared"], "hc_mult": 2},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"], **_DENSE_THEN_SPARSE, "n_shared_experts": 2},
    "inkling2_text": {
        "num_hidden_layers": 6,
        "layer_types": ["hybrid_sliding", "hybrid"] * 3,
        "unpadded_vocab_size": VOCABULARY,
        "n_layers_per_attn_res_block": 1,
    },
    "kimi_linear": {**_LATENT, **_MIXED, **_DENSE_THEN_SPARSE, **_FOUR_EXPERTS, "q_lora_rank": None},
    "kolibri1": {**_SLIDING, "num_local_experts": 4},
    "laguna": {**_DENSE_THEN_SPARSE, **_SLIDING, "num_attention_heads_per_layer": [4, 8]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mellum": {**_DENSE_THEN_SPARSE, **_SLIDING, "num_local_experts": 4},
    "mimo_v2_flash": {**_DENSE_THEN_SPARSE, **_SLIDING},
    "minimax_m3_vl_text": {
        **_DENSE_THEN_SPARSE,
        "layer_types": ["full_attention", "minimax_m3_sparse"],
        "index_block_size": 8,
        "index_topk_blocks": 2,
    },
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "hc_count": 2,
        "hc_lowrank": 8,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "youtu": _LATENT,
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(("bert", "electra", "roberta", "roformer", "xlm-roberta"), _DECODER),
}


def build_more(family: str) -> PreTrainedModel:
    """Return a tiny float32 model with seeded random weights."""
    settings = {"model_type": family, **(MORE | LATER)[family]}
    model_type = settings.pop("model_type")
    usual = AutoConfig.for_model(model_type)
    known = {name for kind in type(usual).__mro__ for name in vars(kind).get("__annotations__", {})}
    numbers = _SMALL | (_ALSO_SMALL if family in LATER else {})
    small = {name: value for name, value in numbers.items() if name in known and name not in usual.attribute_map}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(model_type, **{**tokens, **small, **settings})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
