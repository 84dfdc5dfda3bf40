"""What the tests of packed checkpoints share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import families
import tiny
import torch
from transformers import PreTrainedModel

import zpruner
from zpruner.checkpoint import Checkpoint, find_converted, write_manifest
from zpruner.model import get_weight, set_weight, take_inventory
from zpruner.packed.content import Known
from zpruner.packed.masks import StoredIntegers, StoredLayers
from zpruner.packed.pack import Savings, pack
from zpruner.packed.structure import transposed_tensors
from zpruner.quantization import Grid, QuantizedLayer, choose_scales, nearest_integers, per_weight

IDS = torch.randint(3, 150, (2, 24), generator=torch.Generator().manual_seed(4))


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def zero_half(model: PreTrainedModel, pattern: str = "0.5") -> PreTrainedModel:
    """Zero half of every prunable weight: as torch's masks do, by a product, so that some zeros are negative."""
    draw = torch.Generator().manual_seed(9)
    for layer in take_inventory(model).layers:
        weight = layer.view(model.get_parameter(layer.tensor).detach())
        if pattern == "2:4":
            ranks = torch.rand(weight.shape[0], weight.shape[1] // 4, 4, generator=draw).argsort(-1).argsort(-1)
            weight.mul_((ranks < 2).view(weight.shape))
        else:
            weight.mul_(torch.rand(weight.shape, generator=draw) < 0.5)
    return model


def family(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return families.build(name).to(dtype).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def packed(folder: Path, out: Path) -> Savings:
    out.mkdir()
    return pack(folder, out, Known(transposed_tensors(folder)))


def description(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(folder / "zpruner.safetensors", framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["zpruner"])
    return found


def quantize(folder: Path, grid: Grid, share: float) -> tuple[Path, StoredIntegers]:
    """Write a checkpoint's layers as integers times scales, that share of them pruned; and where they come from."""
    model, _ = zpruner.load(folder, device="cpu")
    layers = take_inventory(model).layers
    draw, made = torch.Generator().manual_seed(5), {}
    for layer in layers:
        weight = get_weight(model, layer)
        keep = torch.rand(weight.shape, generator=draw) >= share
        scales = choose_scales(weight.float(), keep, grid)
        scale = per_weight(scales, keep, grid)
        integers = nearest_integers(weight.float(), scale, grid).masked_fill_(~keep, 0).to(torch.int8)
        made[layer] = QuantizedLayer(layer.name, grid, integers, scales, keep)
        set_weight(model, layer, made[layer].dequantize(weight.dtype))
    model.save_pretrained(folder.with_name("quantized"))
    tiny.tokenizer().save_pretrained(folder.with_name("quantized"))
    quantized = folder.with_name("quantized")
    converted = find_converted(quantized)
    write_manifest(quantized, "a test", **({"converted": converted} if converted else {}))
    checkpoint = Checkpoint(quantized)
    return checkpoint.folder, StoredIntegers(StoredLayers(checkpoint, layers), made.__getitem__)
