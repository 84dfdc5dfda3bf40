"""A tiny Llama as llama.cpp stores it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from safetensors.torch import load_file

PREFIX = "model.layers."
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(llama: Path, path: Path) -> Path:
    """Write the checkpoint of the fixture `llama` as GGUF: other names, q and k in its rotary order, float32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_organization("Acme | Labs")
    writer.add_license("apache-2.0")
    writer.add_languages(["en", "de"])
    writer.add_base_model_count(1)
    writer.add_base_model_repo_url(0, "https://huggingface.co/acme/tiny-7b")
    for add, value in (
        (writer.add_block_count, 2),
        (writer.add_context_length, 64),
        (writer.add_embedding_length, 16),
        (writer.add_feed_forward_length, 24),
        (writer.add_head_count, 4),
        (writer.add_head_count_kv, 2),
        (writer.add_vocab_size, 100),
        (writer.add_rope_dimension_count, 4),
    ):
        add(value)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    model = json.loads((llama / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens += [f"<unused{i}>" for i in range(100 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<") else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(1)
    for name, weight in load_file(llama / "model.safetensors").items():
        if name in TOP_NAMES:
            writer.add_tensor(TOP_NAMES[name], weight.numpy())
            continue
        block, _, module = name.removeprefix(PREFIX).removesuffix(".weight").partition(".")
        heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(module)
        if heads:
            weight = weight.view(heads, 2, -1, 16).transpose(1, 2).reshape(weight.shape).contiguous()
        writer.add_tensor(f"blk.{block}.{GGUF_NAMES[module]}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
