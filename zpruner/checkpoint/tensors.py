"""Tensors in safetensors files: read one at a time, written one after another, never all in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zpruner.errors import MEND, ArtifactError

_BLOCK = 1 << 24
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
# safetensors' own order in a file, before that of names
_ORDER = ("I64", "F64", "C64", "F32", "I32", "BF16", "F16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Stored:
    """A tensor to be written: its type and shape, and how to get it when its turn has come."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Bytes of its values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        """Return a tensor in memory as one to be written."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)


class TensorFiles:
    """The tensors of the safetensors files in a folder, read one at a time."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._file_of = {name: file for file in files for name in tensor_names(file)}

    def names(self) -> list[str]:
        """Return all names."""
        return list(self._file_of)

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
        return read_tensor(self._file_of[name], name)

    def later(self, name: str) -> Stored:
        """Return one tensor, not read yet."""
        return stored_tensor(self._file_of[name], name, lambda: self.read(name))


def read_tensor(file: Path, name: str) -> Tensor:
    """Return one tensor of a file. It is read, not mapped: mapped pages count as this process's memory."""
    with safe_open(file, framework="pt", backend="pread") as tensors:
        found: Tensor = tensors.get_tensor(name)
        return found


def stored_tensor(file: Path, name: str, read: Callable[[], Tensor]) -> Stored:
    """Return type and shape of a file's tensor, from the header, with `read` to get it."""
    with safe_open(file, framework="pt", backend="pread") as tensors:
        part = tensors.get_slice(name)
        return Stored(_DTYPES[part.get_dtype()], tuple(part.get_shape()), read)


def tensor_names(file: Path) -> list[str]:
    """Return the names of a file's tensors.

    Raises:
        ArtifactError: not safetensors.
    """
    try:
        with safe_open(file, framework="pt", backend="pread") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise ArtifactError(
            str(file),
            f"bytes that are not safetensors ({error})",
            "safetensors",
            MEND,
        ) from None


def read_header(file: Path) -> bytes:
    """Return the bytes of a file that say where its tensors lie: the length, and the JSON of that length.

    Raises:
        ArtifactError: shorter than it says.
    """
    size = file.stat().st_size
    with file.open("rb") as raw:
        length = raw.read(8)
        end = 8 + int.from_bytes(length, "little")
        if len(length) < 8 or end > size:
            raise ArtifactError(str(file), f"{size} bytes", f"a header of {end} bytes first", MEND)
        return length + raw.read(end - 8)


def write_order(tensors: Mapping[str, Stored]) -> list[str]:
    """Return names in the order in which they stand in a file."""

    def key(name: str) -> tuple[int, str]:
        return (_ORDER.index(_NAMES[tensors[name].dtype]), name)

    return sorted(tensors, key=key)


def write_tensors(file: IO[bytes] | Any, tensors: Mapping[str, Stored]) -> int:
    """Write tensors as safetensors, each read when its turn has come; return the bytes of their values.

    The bytes are those that `safetensors.torch.save` gives.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    order = write_order(tensors)
    for name in order:
        start, end = end, end + tensors[name].bytes
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
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
