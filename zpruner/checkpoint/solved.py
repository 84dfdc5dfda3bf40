"""Weights that are solved together with their masks: one safetensors file per layer, and an index.

Pruned propagation solves them block after block; SparseGPT in one sweep with the mask; a composition that quantises
solves integers and scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from zpruner.artifacts.files import atomic_file
from zpruner.artifacts.store import ArtifactReader, Provenance, write_index
from zpruner.artifacts.work import Work
from zpruner.checkpoint.tensors import write_tensors
from zpruner.errors import MEND, ArtifactError, ZprunerError
from zpruner.model.layers import PrunableLayer
from zpruner.model.stored import Stored
from zpruner.model.weights import Parameters
from zpruner.quantization import Grid, QuantizedLayer

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

    def write(
        self, layer: str, weight: Tensor, quantized: QuantizedLayer | None = None, bias: Tensor | None = None
    ) -> None:
        """Write a layer's weight (out, in) in its own dtype, or the integers and scales that it is made from.

        So is its bias (out,), where that changes.
        """
        tensors = {"weight": weight} if quantized is None else _parts(quantized)
        if bias is not None:
            tensors["bias"] = bias
        path = self._path(layer)
        with atomic_file(path) as file:
            write_tensors(file, {name: Stored.of(tensor) for name, tensor in tensors.items()})
        facts: dict[str, Any] = {
            "file": path.name,
            "bytes": file.bytes,
            "columns": {name: list(tensor.shape) for name, tensor in tensors.items()},
        }
        if quantized is not None:
            facts |= {"grid": asdict(quantized.grid), "dtype": str(weight.dtype).removeprefix("torch.")}
        self._work.record(layer, {**facts, "checksum": file.checksum}, path, file.checksum)

    def read(self, layer: str, device: str) -> Parameters:
        """Return a weight that has been written, and the bias beside it; None where that stays as it is."""
        tensors, facts = load(self._path(layer).read_bytes()), self._work.done(layer) or {}
        bias = tensors["bias"].to(device) if "bias" in tensors else None
        if "grid" not in facts:
            return Parameters(tensors["weight"].to(device), bias)
        dtype: torch.dtype = getattr(torch, facts["dtype"])
        return Parameters(_quantized(layer, tensors, facts["grid"]).dequantize(dtype).to(device), bias)

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

    @property
    def quantized(self) -> frozenset[str]:
        """Names of the layers whose integers and scales there are."""
        return frozenset(name for name, facts in self._reader.files.items() if "grid" in facts)

    def read(self, layer: PrunableLayer, like: Tensor) -> Tensor:
        """Return a layer's solved weight on the CPU; it must have the shape (out, in) and dtype of `like`.

        Raises:
            ArtifactError: no such layer, altered, or of another shape or dtype.
        """
        path, tensors = self._load(layer.name)
        quantized = self._quantized(path, layer.name, tensors)
        return _like(path, tensors.get("weight") if quantized is None else quantized.dequantize(like.dtype), like)

    def read_bias(self, layer: PrunableLayer, like: Tensor) -> Tensor:
        """Return a layer's bias on the CPU: `like`, the dense one (out,), where it stays; errors as in `read`."""
        if "bias" not in self._reader.files[layer.name]["columns"]:
            return like
        path, tensors = self._load(layer.name)
        return _like(path, tensors.get("bias"), like)

    def read_quantized(self, layer: str) -> QuantizedLayer | None:
        """Return a layer's integers and scales; None where it was not quantised.

        Raises:
            ArtifactError: no such layer, or altered.
        """
        path, tensors = self._load(layer)
        return self._quantized(path, layer, tensors)

    def _load(self, layer: str) -> tuple[Path, dict[str, Tensor]]:
        path, data = self._reader.read_bytes(layer)
        try:
            return path, load(data)
        except SafetensorError as error:
            raise ArtifactError(str(path), f"bytes that are no safetensors ({error})", "a weight", MEND) from None

    def _quantized(self, path: Path, layer: str, tensors: Mapping[str, Tensor]) -> QuantizedLayer | None:
        grid = self._reader.files[layer].get("grid")
        if grid is None:
            return None
        try:
            return _quantized(layer, tensors, grid)
        except (ZprunerError, LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(str(path), f"no quantised layer ({error})", "integers, scales and mask", MEND) from None


def _like(path: Path, found: Tensor | None, like: Tensor) -> Tensor:
    if found is None or found.shape != like.shape or found.dtype != like.dtype:
        got = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
        raise ArtifactError(str(path), got, f"{like.dtype} of shape {tuple(like.shape)}", MEND)
    return found


def _parts(found: QuantizedLayer) -> dict[str, Tensor]:
    bits = torch.from_numpy(np.packbits(found.keep.cpu().numpy(), axis=1, bitorder="little"))
    return {"integers": found.integers, "scales": found.scales, "keep": bits}


def _quantized(layer: str, tensors: Mapping[str, Tensor], grid: Mapping[str, Any]) -> QuantizedLayer:
    integers, bits = tensors["integers"], tensors["keep"]
    keep = np.unpackbits(bits.numpy(), axis=1, count=integers.shape[1], bitorder="little").astype(bool)
    return QuantizedLayer(layer, Grid(**grid), integers, tensors["scales"], torch.from_numpy(keep))
