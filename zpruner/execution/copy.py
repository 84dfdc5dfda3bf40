"""A checkpoint folder written anew under the family's own names and in another dtype, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.artifacts.files import atomic_file, write_json
from zpruner.checkpoint.tensors import write_order, write_tensors
from zpruner.errors import ArtifactError, SourceError
from zpruner.execution.skeleton import Skeleton
from zpruner.model.config import one_sentence, quiet_transformers
from zpruner.model.gguf import load_gguf
from zpruner.model.load import load_model
from zpruner.model.opening import open_checkpoint
from zpruner.model.stored import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD = 50_000_000_000
"""Bytes of a file, as transformers writes them."""


def copy_checkpoint(place: Path, destination: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """Write a checkpoint that gives the logits of `place` as transformers loads it, without ever holding the model.

    Quantised weights become dense. GGUF files, and models that bring their own code, are loaded whole and saved.

    Args:
        place: a folder with config.json and safetensors, or a GGUF file.
        destination: an existing folder.
        dtype: "bfloat16", "float16", "float32", or "auto" for the checkpoint's own.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError: weights that are missing, of another shape or cannot be read.
        ModelStructureError: not a causal language model.
    """
    if place.is_file():
        _save_whole(load_gguf(place, dtype), destination)
        return
    opened = open_checkpoint(place, dtype, trust_remote_code=trust_remote_code)
    if opened.model.is_custom_code():
        _save_whole(load_model(place, dtype, "cpu", trust_remote_code=trust_remote_code), destination)
        return
    try:
        skeleton = Skeleton(opened, torch.device("cpu"))
        shards = _split(dict(_stored(skeleton)))
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            suffix = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
            with atomic_file(destination / f"model{suffix}.safetensors") as file:
                write_tensors(file, shard)
            weight_map |= dict.fromkeys(shard, f"model{suffix}.safetensors")
        if len(shards) > 1:
            size = sum(tensor.bytes for shard in shards for tensor in shard.values())
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            write_json(destination / "model.safetensors.index.json", index)
    except ArtifactError as error:
        got = f"a checkpoint that cannot be read ({error.got})"
        raise SourceError(error.where, got, error.expected, "Get the checkpoint again.") from None
    _save_configs(place, skeleton.model, opened.quantizer, destination)


def _save_whole(model: PreTrainedModel, destination: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(destination)


def _save_configs(folder: Path, model: PreTrainedModel, quantizer: Any, destination: Path) -> None:
    """Write the files that say how the model is built and how it generates."""
    from transformers import GenerationConfig

    with one_sentence(folder), quiet_transformers():
        if quantizer is not None:
            quantizer.remove_quantization_config(model)
        model.config.dtype = str(model.dtype).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(destination)
        if (folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(folder).save_pretrained(destination)
        elif model.can_generate():
            model.generation_config.save_pretrained(destination)


def _stored(skeleton: Skeleton) -> Iterator[tuple[str, Stored]]:
    """Yield every tensor to write; reading one puts its unit into the model, in the place of the one before.

    A unit is an entry of an outermost list of modules, such as a decoder block; or a tensor outside all lists.
    """
    units: dict[str, list[str]] = {}
    for name in skeleton.stored:
        parts = name.split(".")
        end = next((index for index, part in enumerate(parts) if part.isdigit()), len(parts))
        units.setdefault(".".join(parts[: end + 1]), []).append(name)
    cache: dict[str, dict[str, Tensor]] = {}

    def read(unit: str, name: str) -> Tensor:
        if unit not in cache:
            cache.clear()
            skeleton.put(units[unit])
            cache[unit] = skeleton.to_store(units[unit])
            skeleton.take_out(units[unit])
        return cache[unit][name]

    seen: set[str] = set()
    for unit, names in units.items():
        for name, tensor in skeleton.to_store(names).items():
            if name not in seen:
                seen.add(name)
                yield name, Stored(tensor.dtype, tuple(tensor.shape), partial(read, unit, name))


def _split(tensors: dict[str, Stored]) -> list[dict[str, Stored]]:
    """Return the tensors of every file, in the order of writing."""
    shards: list[dict[str, Any]] = [{}]
    size = 0
    for name in write_order(tensors):
        if shards[-1] and size + tensors[name].bytes > _SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += tensors[name].bytes
    return shards
