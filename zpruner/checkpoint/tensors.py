"""Tensors written as safetensors one after another, never all in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from zpruner.model.stored import NAMES, Stored

_BLOCK = 1 << 24
# safetensors' own order in a file, before that of names
_ORDER = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"),
)


def write_order(tensors: Mapping[str, Stored]) -> list[str]:
    """Return names in the order in which they stand in a file."""

    def key(name: str) -> tuple[int, str]:
        return (_ORDER.index(NAMES[tensors[name].dtype]), name)

    return sorted(tensors, key=key)


def write_tensors(
    file: IO[bytes] | Any, tensors: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> int:
    """Write tensors as safetensors, each read when its turn has come; return the bytes of their values.

    The bytes are those that `safetensors.torch.save` gives. `metadata` goes into the header.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    order = write_order(tensors)
    for name in order:
        start, end = end, end + tensors[name].bytes
        kind, shape = NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        tensor = tensors[name].read()
        assert tuple(tensor.shape) == tensors[name].shape, name
        assert tensor.dtype == tensors[name].dtype, name
        # A view of the bytes, part by part: no second copy of the tensor.
        for part in tensor.contiguous().reshape(-1).view(torch.uint8).split(_BLOCK):
            file.write(part.cpu().numpy().data)
        del tensor
    return end


def share_weights(folder: Path) -> None:
    """Make weights as readable as config.json: safetensors makes its files private, and a cache may be shared."""
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)
