"""Stored tensors that a thread reads, and copies to the device, before they are asked for."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from zpruner.model.stored import Tensors
from zpruner.runtime.transfer import to_device


class ReadAhead:
    """Gives tensors on a device: those that were announced from the thread that has read them, others at once.

    Args:
        tensors: what is read.
        device: where they are wanted.
    """

    def __init__(self, tensors: Tensors, device: torch.device) -> None:
        self._tensors, self._device = tensors, device
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weight-reader")
        self._coming: dict[str, Future[Tensor]] = {}

    def announce(self, names: Iterable[str]) -> None:
        """Begin to read the tensors that are asked for next. What was announced before and not taken is dropped."""
        self.keep(())
        self._coming = {name: self._pool.submit(self._read, name) for name in names}

    def keep(self, names: Iterable[str]) -> None:
        """Drop what was announced and not taken, except for the tensors `names`."""
        wanted = set(names)
        for name in [name for name in self._coming if name not in wanted]:
            self._coming.pop(name).cancel()

    def take(self, name: str) -> Tensor:
        """Return a tensor; an error of reading it is raised here."""
        coming = self._coming.pop(name, None)
        return self._read(name) if coming is None else coming.result()

    def _read(self, name: str) -> Tensor:
        return to_device(self._tensors.read(name), self._device)
