"""A loaded packed model written as a packed checkpoint again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from zpruner.artifacts.files import atomic_file, write_json
from zpruner.checkpoint import MANIFEST, Stored, write_tensors
from zpruner.errors import InvalidSettingError
from zpruner.packed.content import Known, describe, packed_size
from zpruner.packed.layout import INDEX, UNREGISTERED, WEIGHTS, PackedTensor, metadata_of, quantization_config
from zpruner.packed.stack import PackedStack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SHARD = 50_000_000_000


def save_packed_by(model: PreTrainedModel, packed: Mapping[str, PackedTensor]) -> None:
    """Let `model.save_pretrained` write a packed checkpoint.

    transformers would write model.safetensors, the one name under which somebody without zpruner gets random weights.
    """
    vars(model)["save_pretrained"] = partial(save_packed, model, packed)


def save_packed(
    model: PreTrainedModel,
    packed: Mapping[str, PackedTensor],
    save_directory: str | Path,
    *,
    max_shard_size: int = _SHARD,
    push_to_hub: bool = False,
    safe_serialization: bool = True,
) -> None:
    """Write weights, config.json and generation_config.json, as `PreTrainedModel.save_pretrained` does.

    What was expanded on loading is packed again.

    Args:
        model: loaded from a packed checkpoint.
        packed: the tensors that were packed in it, by name.
        save_directory: made if it is not there.
        max_shard_size: bytes of a file.
        push_to_hub: must be False.
        safe_serialization: must be True.

    Raises:
        InvalidSettingError: what this cannot do.
    """
    if push_to_hub or not safe_serialization:
        raise InvalidSettingError(
            "save_pretrained",
            "push_to_hub" if push_to_hub else "safe_serialization=False",
            "a folder of safetensors",
            "Save the model, and upload the folder with `hf upload`.",
        )
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    described, tensors = _stored(model, packed)
    shards = _split(tensors, described.values(), max_shard_size)
    for old in [*folder.glob("zpruner*.safetensors"), folder / INDEX, folder / MANIFEST]:
        old.unlink(missing_ok=True)
    names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"zpruner-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    )
    for name, shard in zip(names, shards, strict=True):
        inside = [tensor for tensor in described.values() if tensor.parts["values"] in shard]
        with atomic_file(folder / name) as file:
            write_tensors(file, {found: Stored.of(value) for found, value in shard.items()}, metadata_of(inside))
    if len(shards) > 1:
        weight_map = {found: name for name, shard in zip(names, shards, strict=True) for found in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": sum(map(_size, shards))}, "weight_map": weight_map})
    _write_config(model, folder, INDEX if len(shards) > 1 else WEIGHTS)


def _stored(
    model: PreTrainedModel, packed: Mapping[str, PackedTensor]
) -> tuple[dict[str, PackedTensor], dict[str, Tensor]]:
    """Return what is packed and all tensors, under the names that a checkpoint has them."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    whole = {
        name: found.expanded() if isinstance(found, PackedStack) else found
        for name, found in model.state_dict().items()
    }
    state = remove_tied_weights_from_state_dict(whole, model)
    found: dict[str, Tensor] = revert_weight_conversion(model, state)
    described = {}
    for name, tensor in packed.items():
        if name in found:  # it was expanded on loading
            weight = found[name].detach().cpu().contiguous()
            content = describe(name, weight, Known(frozenset([name] if tensor.transposed else [])))
            if packed_size(content) is not None:
                del found[name]
                described[name] = content.tensor
                found |= {stored: content.part(part) for part, stored in content.tensor.parts.items()}
        elif tensor.parts["values"] in found:
            values = found[tensor.parts["values"]]
            described[name] = tensor if tensor.codes else replace(tensor, dtype=values.dtype)
    return described, {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _split(tensors: Mapping[str, Tensor], packed: Iterable[PackedTensor], limit: int) -> list[dict[str, Tensor]]:
    """Return the tensors file by file; the parts of a packed one stay together."""
    together = [{part: tensors[part] for part in tensor.parts.values()} for tensor in packed]
    inside = {part for group in together for part in group}
    groups = [*together, *({name: tensor} for name, tensor in tensors.items() if name not in inside)]
    shards: list[dict[str, Tensor]] = [{}]
    for group in groups:
        if shards[-1] and _size(shards[-1]) + _size(group) > limit:
            shards.append({})
        shards[-1] |= group
    return shards


def _size(shard: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in shard.values())


def _write_config(model: PreTrainedModel, folder: Path, weights: str) -> None:
    config = json.loads(model.config.to_json_string())
    config |= {
        "architectures": [type(model).__name__],
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization_config": quantization_config(weights),
        "transformers_weights": UNREGISTERED,
    }
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    write_json(folder / "config.json", config)
