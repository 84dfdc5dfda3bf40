"""Checkpoints as they lie in the wild: one model in many layouts, made of what `save_pretrained` wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
PREFIXES = ("model.", "transformer.", "backbone.", "gpt_neox.")


def mixed_types(tensors: Tensors) -> Tensors:
    """Every other tensor in bfloat16."""
    return {name: t.bfloat16() if i % 2 else t for i, (name, t) in enumerate(tensors.items())}


def of_the_base_model(tensors: Tensors) -> Tensors:
    """Names without the prefix that the language model puts before those of its decoder."""
    return {name.split(".", 1)[1] if name.startswith(PREFIXES) else name: t for name, t in tensors.items()}


def with_others(tensors: Tensors) -> Tensors:
    """Tensors that the model does not use, one that transformers drops and one that it reports."""
    others = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.summary.weight": torch.ones(3, 4)}
    return {**tensors, **others}


def with_a_head(tensors: Tensors) -> Tensors:
    """A head of its own; stored beside the embedding although the config ties them."""
    return {
        **tensors,
        "lm_head.weight": torch.linspace(-1, 1, _embedding(tensors).numel()).view_as(_embedding(tensors)),
    }


def with_the_embedding_as_head(tensors: Tensors) -> Tensors:
    """The embedding stored twice."""
    return {**tensors, "lm_head.weight": _embedding(tensors).clone()}


def with_the_head_alone(tensors: Tensors) -> Tensors:
    """The tied tensor stored as the head only."""
    embedding = next(name for name, t in tensors.items() if t is _embedding(tensors))
    return {
        "lm_head.weight" if name == embedding else name: t for name, t in tensors.items() if name != "lm_head.weight"
    }


def unchanged(tensors: Tensors) -> Tensors:
    """As saved."""
    return tensors


TENSORS: tuple[Callable[[Tensors], Tensors], ...] = (
    unchanged,
    mixed_types,
    of_the_base_model,
    with_others,
    with_a_head,
    with_the_embedding_as_head,
    with_the_head_alone,
)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], shards: int, **config: object) -> None:
    """Store the tensors of a checkpoint anew, changed, in so many files; set what `config` says in config.json."""
    path = folder / "model.safetensors"
    tensors = {name: t.contiguous().clone() for name, t in change(load_file(path)).items()}
    path.unlink()
    names = sorted(tensors)
    files = {f"model-{n:05d}-of-{shards:05d}.safetensors": names[n::shards] for n in range(shards)}
    if shards == 1:
        files = {"model.safetensors": names}
    for file, held in files.items():
        save_file({name: tensors[name] for name in held}, folder / file, {"format": "pt"})
    if shards > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, held in files.items() for name in held}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v != "absent"}))


def add_leftovers(folder: Path) -> None:
    """Put files beside the weights that transformers does not read."""
    junk = {"model.embed_tokens.weight": torch.full((160, 32), 9.0), "lm_head.weight": torch.full((160, 32), 9.0)}
    for name in (
        "zz_ema.safetensors",
        "model.fp16.safetensors",
        "consolidated.safetensors",
        "adapter_model.safetensors",
    ):
        save_file(junk, folder / name, {"format": "pt"})
    torch.save(junk, folder / "pytorch_model.bin")
    (folder / "onnx").mkdir()
    save_file(junk, folder / "onnx" / "model.safetensors", {"format": "pt"})


def _embedding(tensors: Tensors) -> Tensor:
    matrices = [
        name for name, t in tensors.items() if t.ndim == 2 and "position" not in name and "per_layer" not in name
    ]
    return tensors[next((name for name in matrices if "embed" in name or "wte" in name), matrices[0])]
