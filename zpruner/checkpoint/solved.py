"""Weights as pruned propagation solved them, block after block: one safetensors file per layer, and an index."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from zpruner.artifacts.files import atomic_file
from zpruner.artifacts.store import ArtifactReader, Provenance, write_index
from zpruner.artifacts.work import Work
from zpruner.checkpoint.tensors import write_tensors
from zpruner.errors import MEND, ArtifactError
from zpruner.model.layers import PrunableLayer
from zpruner.model.stored import Stored

KIND = "solved"


class SolvedWriter:
    """Writes solved weights into an open work folder, one layer at a time; a written one survives a kill.

    Args:
        work: the open work folder.
        provenance: goes into the index.
    """

    def __init__(self, work: Work, provenance: Provenance) -> None:
        self._work, self._provenance = work, provenance

    def has(self, layer: str) -> bool:
        """Return whether a layer's weight has been written."""
        return self._work.done(layer) is not None

    def write(self, layer: str, weight: Tensor) -> None:
        """Write a layer's weight (out, in) in its own dtype, from any device."""
        path = self._path(layer)
        with atomic_file(path) as file:
            write_tensors(file, {"weight": Stored.of(weight)})
        facts = {"file": path.name, "bytes": file.bytes, "columns": {"weight": list(weight.shape)}}
        self._work.record(layer, {**facts, "checksum": file.checksum}, path, file.checksum)

    def read(self, layer: str, device: str) -> Tensor:
        """Return a weight that has been written."""
        return load(self._path(layer).read_bytes())["weight"].to(device)

    def finish(self, out: Path) -> None:
        """Write the index and publish the folder as `out`; without weights it says that nothing was solved ahead."""
        write_index(self._work.files, KIND, self._provenance, dict(self._work.items()))
        self._work.publish(out)

    def _path(self, layer: str) -> Path:
        return self._work.files / f"{layer}.safetensors"


class SolvedWeights:
    """Solved weights on disk, read layer by layer.

    Args:
        folder: written by `SolvedWriter.finish`.
        expected: provenance that it must have; empty fields are not compared.

    Raises:
        ArtifactError: missing, damaged, or of another variant.
    """

    def __init__(self, folder: Path, expected: Provenance) -> None:
        self._reader = ArtifactReader(folder, KIND)
        expected.require(asdict(self._reader.provenance), folder)

    @property
    def digest(self) -> str:
        """A digest of all weights."""
        return self._reader.digest

    def read(self, layer: PrunableLayer, like: Tensor) -> Tensor:
        """Return a layer's solved weight on the CPU; it must have the shape (out, in) and dtype of `like`.

        Raises:
            ArtifactError: no such layer, altered, or of another shape or dtype.
        """
        path, data = self._reader.read_bytes(layer.name)
        try:
            weight = load(data).get("weight")
        except SafetensorError as error:
            raise ArtifactError(str(path), f"bytes that are no safetensors ({error})", "a weight", MEND) from None
        if weight is None or weight.shape != like.shape or weight.dtype != like.dtype:
            got = "no weight" if weight is None else f"{weight.dtype} of shape {tuple(weight.shape)}"
            raise ArtifactError(str(path), got, f"{like.dtype} of shape {tuple(like.shape)}", MEND)
        return weight
