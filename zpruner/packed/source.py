"""The files of a checkpoint that is to be packed, as they lie on disk: whoever unpacks gets the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from torch import Tensor

from zpruner.errors import ArtifactError
from zpruner.model.config import read_config
from zpruner.model.stored import Stored, read_header, read_tensor, tensor_facts
from zpruner.runtime.plain_json import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt")


@dataclass(frozen=True)
class WeightFile:
    """A safetensors file: its header as it stands, and the names of its tensors in the order of their bytes."""

    path: Path
    prefix: bytes
    names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path) -> WeightFile:
        """Read the header.

        Raises:
            ArtifactError: not safetensors.
        """
        names = tensor_facts(path)  # which checks it
        prefix = read_header(path)
        header: dict[str, Any] = json.loads(prefix[8:])
        return cls(path, prefix, tuple(sorted(names, key=lambda name: header[name]["data_offsets"])))

    def tensors(self) -> Iterator[tuple[str, Stored]]:
        """Yield every tensor, not read yet, in the order of their bytes."""
        facts = tensor_facts(self.path)
        for name in self.names:
            yield name, facts[name].later(name, partial(read_tensor, self.path, name))


class FileDigest:
    """The checksum of a safetensors file, from its header and its tensors in the order of their bytes."""

    def __init__(self, prefix: bytes) -> None:
        self._digest = xxhash.xxh3_128(prefix)

    def add(self, tensor: Tensor) -> None:
        """Take in the next tensor."""
        self._digest.update(raw_bytes(tensor))

    def hex(self) -> str:
        """Return the checksum, as `zpruner.artifacts.files.checksum` gives it."""
        return str(self._digest.hexdigest())


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without copying them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def other_files(folder: Path) -> list[Path]:
    """Return what lies beside the weights and belongs to the model: configuration, tokenizer, card, code."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix not in _WEIGHTS
    ]


def read_plain_config(folder: Path, *, trust_remote_code: bool = False) -> tuple[PretrainedConfig, dict[str, Any]]:
    """Return the config of a checkpoint with ordinary weights, as transformers and as JSON reads it.

    Raises:
        SourceError, ModelStructureError: as `read_config`.
        ArtifactError: the model is quantised or packed already.
    """
    path = folder / "config.json"
    try:
        raw: dict[str, Any] = read_json(path)
        method = (raw.get("quantization_config") or {}).get("quant_method")
    except (OSError, ValueError, AttributeError):
        raw, method = {}, None  # `read_config` says what is wrong with it
    if method is not None:
        raise ArtifactError(
            str(path), f"a checkpoint that {method} made", "ordinary weights", "Pack the model that it was made from."
        )
    return read_config(folder, trust_remote_code=trust_remote_code), raw
