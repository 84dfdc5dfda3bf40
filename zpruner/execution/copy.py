"""A checkpoint folder written anew under the family's own names and in another dtype, one block in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.artifacts.work import atomic_file, write_json
from zpruner.checkpoint.tensors import Stored, TensorFiles, write_order, write_tensors
from zpruner.errors import ArtifactError, ModelStructureError, SourceError
from zpruner.execution.skeleton import Skeleton
from zpruner.model.load import quiet_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SHARD = 50_000_000_000
"""Bytes of a file, as transformers writes them."""


def copy_checkpoint(folder: Path, destination: Path, dtype: str, trust_remote_code: bool = False) -> None:
    """Write a checkpoint as loading and saving the whole model would, without ever holding it.

    Args:
        folder: config.json and *.safetensors.
        destination: an existing folder.
        dtype: "bfloat16", "float16", "float32", or "auto" for the checkpoint's own.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError: weights that are missing, of another shape or cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        files = TensorFiles(sorted(folder.glob("*.safetensors")))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        chosen = _dtype(dtype, config, files)
        skeleton = Skeleton(folder, files, chosen, torch.device("cpu"), trust_remote_code)
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
    except (ModelStructureError, ArtifactError) as error:
        got = f"a checkpoint that cannot be read ({error.got})"
        raise SourceError(error.where, got, error.expected, "Get the checkpoint again.") from None
    model = skeleton.model
    with quiet_transformers():
        model.config.dtype = str(chosen).removeprefix("torch.")
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(destination)
        if (folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(folder).save_pretrained(destination)
        elif model.can_generate():
            model.generation_config.save_pretrained(destination)


def _dtype(dtype: str, config: PretrainedConfig, files: TensorFiles) -> torch.dtype:
    """Return the dtype that transformers would load in: with `auto` the config's, else the first stored one's."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    found = (files.later(name).dtype for name in files.names())
    return next((kind for kind in found if kind.is_floating_point), torch.float32)


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
