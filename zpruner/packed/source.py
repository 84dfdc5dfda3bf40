"""The files of a checkpoint that is to be packed, as they lie on disk: whoever unpacks gets the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from zpruner.checkpoint.files import SHARD_INDEX
from zpruner.checkpoint.tensors import Stored, TensorFiles
from zpruner.errors import ArtifactError, SourceError

_SINGLE = "model.safetensors"
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
        files = TensorFiles([path])  # which checks it
        with path.open("rb") as raw:
            length = raw.read(8)
            prefix = length + raw.read(int.from_bytes(length, "little"))
        header: dict[str, Any] = json.loads(prefix[8:])
        return cls(path, prefix, tuple(sorted(files.names(), key=lambda name: header[name]["data_offsets"])))

    def tensors(self) -> Iterator[tuple[str, Stored]]:
        """Yield every tensor, not read yet, in the order of their bytes."""
        files = TensorFiles([self.path])
        for name in self.names:
            yield name, files.later(name)


class FileDigest:
    """The checksum of a safetensors file, from its header and its tensors in the order of their bytes."""

    def __init__(self, prefix: bytes) -> None:
        self._digest = xxhash.xxh3_128(prefix)

    def add(self, tensor: Tensor) -> None:
        """Take in the next tensor."""
        self._digest.update(raw_bytes(tensor))

    def hex(self) -> str:
        """Return the checksum, as `zpruner.artifacts.work.checksum` gives it."""
        return str(self._digest.hexdigest())


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor, without copying them."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that transformers would load from `folder`: model.safetensors, or the index's.

    Raises:
        SourceError: there are none, or the index names files that are not there.
    """
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    index = folder / SHARD_INDEX
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        raise SourceError(
            str(folder), f"neither {_SINGLE} nor {SHARD_INDEX}", "a checkpoint in safetensors", "Check the folder."
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise SourceError(str(index), f"no index ({error})", "a weight_map", "Get the checkpoint again.") from None
    for name in named:
        if Path(name).name != name or not (folder / name).is_file():
            raise SourceError(str(folder), f"no file '{name}'", f"what {SHARD_INDEX} names", "Get it again.")
    return [folder / name for name in named]


def other_files(folder: Path) -> list[Path]:
    """Return what lies beside the weights and belongs to the model: configuration, tokenizer, card, code."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix not in _WEIGHTS
    ]


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json.

    Raises:
        SourceError: there is none, or it is not JSON.
        ArtifactError: it is of a model that is quantised or packed already.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(
            str(path), f"no configuration ({error})", "a checkpoint folder", "Check the folder."
        ) from None
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method is not None:
        raise ArtifactError(
            str(path),
            f"a checkpoint that {method} made",
            "one with ordinary weights",
            "Pack the model it was made from.",
        )
    return dict(config)
