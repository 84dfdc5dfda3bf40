"""A random model of some shape, pruned, perhaps made of integers, and packed: for speeds, not for what it predicts."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from zpruner.packed.content import Integers, Known
from zpruner.packed.pack import Savings, pack
from zpruner.packed.size import codes_of_grid
from zpruner.quantization import Grid, QuantizedLayer, group_counts, per_weight

GRIDS = {"bf16": None, "int8": Grid(8), "int4": Grid(4, 32)}


def config_of(checkpoint: Path | None, layers: int) -> PretrainedConfig:
    """Return the shape of a checkpoint; None: that of Llama-3.2-1B with so many layers."""
    if checkpoint is not None:
        found: PretrainedConfig = AutoConfig.from_pretrained(checkpoint)
        return found
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )


def zeroed(weight: Tensor, share: float) -> Tensor:
    """Zero that share of a weight in place."""
    return weight.masked_fill_(torch.rand(weight.shape) < share, 0)


def make_packed(config: PretrainedConfig, share: float, values: str, out: Path) -> Savings:
    """Write a packed checkpoint whose projections have that share of zeros into `out`, which must not be there."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    network = AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(before)
    grid, scales = GRIDS[values], {}
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "proj" not in name:
                continue
            if grid is None:
                zeroed(weight, share)
            else:
                layer = _random(name, weight, share, grid)
                scales[name] = layer.scales
                weight.copy_(layer.dequantize(weight.dtype))
    dense = out.with_name("dense")
    network.save_pretrained(dense)
    del network
    out.mkdir(parents=True)

    def integers(name: str, tensor: Tensor) -> Integers | None:
        if grid is None or name not in scales:
            return None
        keep = tensor != 0
        each = per_weight(scales[name], keep, grid)
        found = torch.where(keep, (tensor.float() / each).round(), 0).to(torch.int8)
        return Integers(codes_of_grid(grid), False, found, each, grid.scale_dtype, keep)

    saved = pack(dense, out, Known(integers=integers))
    shutil.rmtree(dense)
    return saved


def _random(name: str, weight: Tensor, share: float, grid: Grid) -> QuantizedLayer:
    """Return integers, none of them 0 where kept, and scales that give numbers of the weight's size."""
    keep = torch.rand(weight.shape) >= share
    integers = torch.randint(1, grid.high + 1, weight.shape, dtype=torch.int8)
    integers = torch.where(torch.rand(weight.shape) < 0.5, -integers, integers).masked_fill_(~keep, 0)
    counts = group_counts(keep, grid)
    scales = torch.rand(len(keep), int(counts.max())).add_(0.5).mul_(0.02 / grid.high)
    scales[torch.arange(scales.shape[1]) >= counts.unsqueeze(1)] = 0
    return QuantizedLayer(name, grid, integers, scales.to(grid.scale_dtype), keep)
