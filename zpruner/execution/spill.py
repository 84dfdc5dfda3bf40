"""Hidden states that memory has no room for, kept in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from zpruner.errors import ArtifactError
from zpruner.runtime.system_errors import system_errors_named


class Spill:
    """Takes the memory from tensors that wait, and gives it back with the same values.

    Args:
        folder: where the files lie; None: everything stays in memory.
        limit: bytes of waiting tensors that may stay in memory.
    """

    def __init__(self, folder: Path | None = None, limit: int = 0) -> None:
        self._folder, self._limit = folder, limit
        self._kept: dict[int, int] = {}
        self._written: dict[int, tuple[int, int]] = {}

    def store(self, index: int, tensor: Tensor) -> None:
        """Let go of the memory of `tensor`, unless there is room for it. One tensor per index waits at a time."""
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        room = sum(self._kept.values()) + size <= self._limit
        if self._folder is None or room or not storage.resizable():
            self._kept[index] = size
            return
        # A copy: memory that numpy has seen cannot be resized.
        values = _bytes_of(tensor).to("cpu", copy=True).numpy()
        file = self._file(index)
        with system_errors_named(file):
            file.write_bytes(values.data)
        storage.resize_(0)
        self._written[index] = (size, xxhash.xxh3_64_intdigest(values.data))

    def restore(self, index: int, tensor: Tensor) -> None:
        """Give `tensor` its values again.

        Raises:
            ArtifactError: the file was altered.
        """
        self._kept.pop(index, None)
        written = self._written.pop(index, None)
        if written is None:
            return
        size, checksum = written
        file = self._file(index)
        with system_errors_named(file):
            values = np.fromfile(file, dtype=np.uint8)
        if xxhash.xxh3_64_intdigest(values.data) != checksum:
            raise ArtifactError(str(file), "altered hidden states", "those once written", "Check the disk; run again.")
        tensor.untyped_storage().resize_(size)
        _bytes_of(tensor).copy_(torch.from_numpy(values))
        file.unlink()

    def _file(self, index: int) -> Path:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"hidden-{index:06d}"


def _bytes_of(tensor: Tensor) -> Tensor:
    """Return all bytes of the memory that `tensor` is a part of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
