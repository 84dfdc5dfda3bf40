"""Tensors of safetensors files, read one at a time, never all in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zpruner.errors import MEND, ArtifactError

NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
}
"""The names by which safetensors files give types."""
DTYPES = {name: dtype for dtype, name in NAMES.items()}
_HEADER = 1 << 25
"""Bytes of a header, at most: 140,000 tensors have 17 MB."""


@dataclass(frozen=True)
class Stored:
    """A tensor that is read when its turn has come: its type and shape, and how to get it."""

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


@dataclass(frozen=True)
class Facts:
    """What the header of a file says about a tensor: where it lies, safetensors' name of its type, its shape."""

    file: Path
    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        """Its type; None where torch has none of that name."""
        return DTYPES.get(self.kind)

    def bytes(self, name: str) -> int:
        """Return the bytes of the values of the tensor `name`; errors as `later`."""
        return torch.Size(self.shape).numel() * self._known(name).itemsize

    def later(self, name: str, read: Callable[[], Tensor]) -> Stored:
        """Return the tensor `name` with `read` to get it.

        Raises:
            ArtifactError: numbers of a type that torch has not.
        """
        return Stored(self._known(name), self.shape, read)

    def _known(self, name: str) -> torch.dtype:
        if self.dtype is None:
            raise ArtifactError(
                str(self.file), f"'{name}' of type {self.kind}", "numbers of 16 bits or more", "Give another model."
            )
        return self.dtype


class Tensors(Protocol):
    """Named tensors that are read one at a time, such as a checkpoint's."""

    def names(self) -> list[str]:
        """Return all names."""
        ...

    def facts(self, name: str) -> Facts:
        """Return what is known of one tensor before it is read."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU."""
        ...


class TensorFiles:
    """The tensors of several safetensors files; of a name that two files have, the later file's, as in transformers.

    Args:
        files: paths.

    Raises:
        ArtifactError: not safetensors.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._facts = {name: facts for file in files for name, facts in tensor_facts(file).items()}

    def names(self) -> list[str]:
        """Return all names."""
        return list(self._facts)

    def facts(self, name: str) -> Facts:
        """Return what is known of one tensor before it is read."""
        return self._facts[name]

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU."""
        return read_tensor(self._facts[name].file, name)


def read_tensor(file: Path, name: str) -> Tensor:
    """Return one tensor of a file. It is read, not mapped: mapped pages count as this process's memory."""
    with safe_open(file, framework="pt", backend="pread") as tensors:
        found: Tensor = tensors.get_tensor(name)
        return found


def tensor_facts(file: Path) -> dict[str, Facts]:
    """Return what a file's header says, by tensor name.

    Raises:
        ArtifactError: not safetensors.
    """
    try:
        with file.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if length > _HEADER:
            raise SafetensorError(f"a header of {length} bytes")
        with safe_open(file, framework="pt", backend="pread") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            return {name: Facts(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (OSError, SafetensorError) as error:
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
