"""Unfinished sums on disk, so that a killed collection continues where it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from zpruner.artifacts.files import atomic_file
from zpruner.artifacts.work import Work
from zpruner.calibration.accumulate import InputAccumulator
from zpruner.calibration.collection import Collection
from zpruner.calibration.gradients import GradientSums


class _Snapshots:
    """Tensors with JSON facts, written now and then into the scratch folder of a work folder.

    Args:
        work: the open work folder.
        every: seconds between snapshots; more where writing one takes over a tenth of it, the first at a gigabyte a
            second. 0: after every batch.
        part_bytes: of tensors per file, of which a copy is made; a larger tensor has its own file.
    """

    def __init__(self, work: Work, every: float, part_bytes: int = 1 << 28) -> None:
        self.work, self.every, self.part_bytes = work, every, part_bytes
        self._begun = monotonic()
        self._next = self._begun + every

    def _newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts of the newest whole snapshot."""
        for name, facts in reversed(list(self.work.items().items())):
            if name.startswith("snapshot-"):
                parts = [f"{name}-{number}" for number in range(facts["parts"])]
                if all(self.work.done(f"part-{part}") is not None for part in parts):
                    return {key: value for part in parts for key, value in load_file(self._path(part)).items()}, facts
        return None

    def _path(self, part: str) -> Path:
        return self.work.scratch / f"{part}.safetensors"

    def _due(self, tensors: Iterable[Tensor]) -> bool:
        worth = 10 * sum(tensor.nbytes for tensor in tensors) / 1e9 if self.every else 0.0
        return monotonic() >= max(self._next, self._begun + worth)

    def _write(self, windows: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write a snapshot in parts, which bounds the memory that this takes; older ones are deleted."""
        started = monotonic()
        name, number = f"snapshot-{windows:06d}", 0
        for number, part in enumerate(_parts(tensors, self.part_bytes)):
            path = self._path(f"{name}-{number}")
            with atomic_file(path) as file:
                file.write(save({key: tensor.cpu().contiguous() for key, tensor in part.items()}))
            self.work.record(f"part-{name}-{number}", {}, path, file.checksum)
        self.work.record(name, {"windows": windows, "parts": number + 1, **facts})
        for old in self.work.scratch.glob("snapshot-*.safetensors"):
            if not old.name.startswith(f"{name}-"):
                old.unlink()
        ended = monotonic()
        self._next = ended + (max(self.every, 10 * (ended - started)) if self.every else 0.0)


def _parts(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in groups of at most `limit` bytes, or of a single larger one."""
    part: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if part and sum(held.nbytes for held in part.values()) + tensor.nbytes > limit:
            yield part
            part = {}
        part[name] = tensor
    yield part


class Snapshots(_Snapshots):
    """Snapshots of activation statistics."""

    def restore(self, device: torch.device) -> Collection:
        """Return the newest whole snapshot, or an empty collection."""
        found = self._newest()
        if found is None:
            return Collection()
        tensors, facts = found
        states: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            owner, _, stat = key.rpartition("/")
            states.setdefault(owner, {})[stat] = tensor
        sums = {o: InputAccumulator.restore(states[o], n, device) for o, n in facts["tokens"].items()}
        return Collection(sums, dict(facts["owner"]), facts["windows"])

    def save(self, collection: Collection) -> None:
        """Write a snapshot if one is due."""
        tensors = {
            f"{owner}/{stat}": tensor
            for owner, sums in collection.accumulators.items()
            for stat, tensor in sums.state().items()
        }
        if not self._due(tensors.values()):
            return
        tokens = {owner: sums.tokens for owner, sums in collection.accumulators.items()}
        self._write(collection.windows, tensors, {"owner": collection.owner, "tokens": tokens})


class GradientSnapshots(_Snapshots):
    """Snapshots of gradient statistics."""

    def restore(self, device: torch.device) -> GradientSums:
        """Return the newest whole snapshot, or no sums."""
        found = self._newest()
        if found is None:
            return GradientSums()
        tensors, facts = found
        return GradientSums({name: tensor.to(device) for name, tensor in tensors.items()}, facts["windows"])

    def save(self, collection: GradientSums) -> None:
        """Write a snapshot if one is due."""
        if self._due(collection.sums.values()):
            self._write(collection.windows, collection.sums, {})
