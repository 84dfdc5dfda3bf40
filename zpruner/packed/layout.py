"""The packed format, version 1: names, shapes and what the files say about themselves (docs/packed.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from zpruner.errors import ArtifactError
from zpruner.kernels.checks import words
from zpruner.model.config import PACKED

METHOD = PACKED
"""`quant_method` in config.json, and the key of the metadata in every file."""
FORMAT = "zpruner-bitmask"
VERSION = 1
WEIGHTS = "zpruner.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SIGNS = "negative_zeros.safetensors"
"""Which of the zeros left out are -0.0; only `unpack` reads it."""
PARTS = ("bitmask", "values", "offsets")
UNREGISTERED = "this checkpoint is packed: `pip install zpruner`, and `import zpruner` before it is loaded"
"""Where transformers looks for the name of the weights' file: its error says this if zpruner was not imported."""


@dataclass(frozen=True)
class PackedTensor:
    """A stored tensor that is packed.

    Attributes:
        name: of the tensor that it stands for.
        shape: of that tensor.
        transposed: whether its rows are the columns of that tensor, which is stored (in, out).
        dtype: of its values.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        """Rows of the packed matrix: outputs, those of all experts of a stack after one another."""
        return self.shape[-1] if self.transposed else prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the packed matrix."""
        return self.shape[0] if self.transposed else self.shape[-1]

    @property
    def parts(self) -> tuple[str, str, str]:
        """Names of its bitmask, values and offsets."""
        bitmask, values, offsets = (f"{self.name}_{part}" for part in PARTS)
        return bitmask, values, offsets

    @property
    def bitmask_shape(self) -> tuple[int, int]:
        """Of its bitmask, uint8."""
        return self.rows, words(self.columns) * 8

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stored tensor, or a mask of its shape, as (rows, columns)."""
        return tensor.T.contiguous() if self.transposed else tensor.reshape(self.rows, self.columns)

    def restored(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return (rows, columns) as the tensor was stored, contiguous."""
        return matrix.T.contiguous() if self.transposed else matrix.view(self.shape)


def quantization_config(weights: str) -> dict[str, Any]:
    """Return the entry `quantization_config` of config.json.

    Args:
        weights: the file that holds the weights, or names those that do.
    """
    return {"quant_method": METHOD, "format": FORMAT, "version": VERSION, "weights": weights}


def metadata_of(tensors: Iterable[PackedTensor]) -> dict[str, str]:
    """Return the metadata of a file with these tensors packed in it."""
    listed = {
        tensor.name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "transposed": tensor.transposed,
        }
        for tensor in tensors
    }
    return {METHOD: json.dumps({"format": FORMAT, "version": VERSION, "tensors": listed}, sort_keys=True)}


def read_metadata(where: str, metadata: Mapping[str, str] | None) -> dict[str, PackedTensor]:
    """Return the packed tensors of a file, by name, from its metadata.

    Args:
        where: the file, for errors.
        metadata: of its header.

    Raises:
        ArtifactError: not a packed file, of another version, or not as `metadata_of` writes it.
    """
    text = (metadata or {}).get(METHOD)
    if text is None:
        raise ArtifactError(
            where, f"no '{METHOD}' in its metadata", "a file of a packed checkpoint", "Pack the model again."
        )
    try:
        found: dict[str, Any] = json.loads(text)
        version = (found["format"], found["version"])
        tensors = {} if version != (FORMAT, VERSION) else {n: _parse(n, facts) for n, facts in found["tensors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            where, f"metadata that cannot be read ({error!r})", f"{FORMAT} {VERSION}", "Pack the model again."
        ) from None
    if version != (FORMAT, VERSION):
        raise ArtifactError(
            where,
            f"{version[0]} of version {version[1]}",
            f"{FORMAT} of version {VERSION}",
            "Load it with the version of zpruner that packed it, or pack the model again.",
        )
    return tensors


def _parse(name: str, facts: Mapping[str, Any]) -> PackedTensor:
    shape, transposed = tuple(facts["shape"]), facts["transposed"]
    if len(shape) < 2 or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{name} of shape {list(shape)}")
    if type(transposed) is not bool or (transposed and len(shape) != 2):
        raise ValueError(f"{name} with transposed {transposed!r}")
    dtype = getattr(torch, str(facts["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} of dtype {facts['dtype']!r}")
    return PackedTensor(name, shape, transposed, dtype)
