"""The packed format, version 2: names, shapes and what the files say about themselves (docs/packed.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from zpruner.errors import ArtifactError
from zpruner.kernels.checks import check_codes
from zpruner.kernels.parts import Codes, Layout
from zpruner.model.config import PACKED

METHOD = PACKED
"""`quant_method` in config.json, and the key of the metadata in every file."""
FORMAT = "zpruner-bitmask"
VERSION = 2
READABLE = (1, 2)
"""Version 1 has no integers, and means the same otherwise."""
WEIGHTS = "zpruner.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SIGNS = "negative_zeros.safetensors"
"""Which of the zeros left out are -0.0; only `unpack` reads it."""
PARTS = ("bitmask", "values", "offsets", "scales")
UNREGISTERED = "this checkpoint is packed: `pip install zpruner`, and `import zpruner` before it is loaded"
"""Where transformers looks for the name of the weights' file: its error says this if zpruner was not imported."""


@dataclass(frozen=True)
class PackedTensor:
    """A stored tensor that is packed.

    Attributes:
        name: of the tensor that it stands for.
        shape: of that tensor.
        transposed: whether its rows are the columns of that tensor, which is stored (in, out), or of each of a stack.
        dtype: of that tensor.
        masked: whether pruned weights are left out.
        codes: how integers stand for the weights; None: the values are the weights.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool
    dtype: torch.dtype
    masked: bool = True
    codes: Codes | None = None

    @property
    def rows(self) -> int:
        """Rows of the packed matrix: outputs, those of all experts of a stack after one another."""
        return prod(self.shape[:-2]) * self.shape[-1] if self.transposed else prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the packed matrix."""
        return self.shape[-2] if self.transposed else self.shape[-1]

    @property
    def layout(self) -> Layout:
        """Of the packed matrix."""
        return Layout(self.rows, self.columns, self.dtype, self.masked, self.codes)

    @property
    def parts(self) -> dict[str, str]:
        """The parts that it has -> the names of their tensors."""
        return {part: f"{self.name}_{part}" for part in self.layout.names}

    def matrix(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the stored tensor, or a mask of its shape, as (rows, columns)."""
        return (tensor.mT.contiguous() if self.transposed else tensor).reshape(self.rows, self.columns)

    def restored(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return (rows, columns) as the tensor was stored, contiguous."""
        if not self.transposed:
            return matrix.view(self.shape)
        return matrix.view(*self.shape[:-2], self.shape[-1], self.shape[-2]).mT.contiguous()


def quantization_config(weights: str) -> dict[str, Any]:
    """Return the entry `quantization_config` of config.json.

    Args:
        weights: the file that holds the weights, or names those that do.
    """
    return {"quant_method": METHOD, "format": FORMAT, "version": VERSION, "weights": weights}


def metadata_of(tensors: Iterable[PackedTensor]) -> dict[str, str]:
    """Return the metadata of a file with these tensors packed in it."""
    listed = {tensor.name: _facts(tensor) for tensor in tensors}
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
        known = version[0] == FORMAT and version[1] in READABLE
        tensors = {name: _parse(name, facts) for name, facts in found["tensors"].items()} if known else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(
            where, f"metadata that cannot be read ({error!r})", f"{FORMAT} {VERSION}", "Pack the model again."
        ) from None
    check_version(where, *version)
    return tensors


def check_version(where: str, name: Any, version: Any) -> None:
    """Raise ArtifactError for a format or a version that is not read here.

    Args:
        where: names the file in the error.
        name, version: as the file gives them.
    """
    if name != FORMAT or version not in READABLE:
        raise ArtifactError(
            where,
            f"{name} of version {version}",
            f"{FORMAT} of version {' or '.join(map(str, READABLE))}",
            "Load it with the version of zpruner that packed it, or pack the model again.",
        )


def _facts(tensor: PackedTensor) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "transposed": tensor.transposed,
    }
    if tensor.codes is not None:
        facts |= {"masked": tensor.masked, "bits": tensor.codes.bits, "group": tensor.codes.group}
    return facts


def _parse(name: str, facts: Mapping[str, Any]) -> PackedTensor:
    shape, transposed = tuple(facts["shape"]), facts["transposed"]
    if len(shape) < 2 or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{name} of shape {list(shape)}")
    if type(transposed) is not bool:
        raise ValueError(f"{name} with transposed {transposed!r}")
    dtype = getattr(torch, str(facts["dtype"]), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} of dtype {facts['dtype']!r}")
    if "bits" not in facts:
        return PackedTensor(name, shape, transposed, dtype)
    masked, bits, group = facts["masked"], facts["bits"], facts["group"]
    if type(masked) is not bool or type(bits) is not int or type(group) is not int or not dtype.is_floating_point:
        raise ValueError(f"{name} with masked {masked!r}, {bits!r} bits, groups of {group!r} for {dtype}")
    found = PackedTensor(name, shape, transposed, dtype, masked, Codes(bits, group))
    check_codes(name, found.layout)
    return found
