"""A packed checkpoint on disk: its tensors as they were, each read and checked by itself."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from zpruner.artifacts.files import checksum, read_sealed_json
from zpruner.checkpoint import MANIFEST
from zpruner.errors import ArtifactError
from zpruner.kernels import Parts, check_packed
from zpruner.kernels.expand import expand_rows, unpack_bits
from zpruner.kernels.parts import words
from zpruner.model.stored import NAMES, read_tensor, tensor_facts
from zpruner.packed.encode import nonzero, put_negative_zeros
from zpruner.packed.layout import INDEX, PARTS, WEIGHTS, PackedTensor, read_metadata
from zpruner.runtime.plain_json import read_json

_AGAIN = "Pack the model again."


def packed_files(folder: Path) -> list[Path]:
    """Return the weights' files of a packed checkpoint: zpruner.safetensors, or what its index names.

    Raises:
        ArtifactError: there are none, or the index names files that are not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    try:
        index = read_json(folder / INDEX)
        named = sorted(set(index["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise ArtifactError(
            str(folder),
            f"neither {WEIGHTS} nor a readable {INDEX}",
            "a packed checkpoint",
            "See `zpruner pack --help`.",
        ) from None
    for name in named:
        if Path(name).name != name or not (folder / name).is_file():
            raise ArtifactError(str(folder), f"no file '{name}'", f"what {INDEX} names", _AGAIN)
    return [folder / name for name in named]


class PackedFile:
    """One file of a packed checkpoint.

    Args:
        path: a safetensors file with the metadata of `zpruner.packed.layout`.

    Raises:
        ArtifactError: not such a file, or a packed tensor's parts are not those that its metadata asks for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        facts = tensor_facts(path)
        with safe_open(path, framework="pt", backend="pread") as file:
            self.packed = read_metadata(str(path), file.metadata())
            """Packed tensors, by the name of what they stand for."""
        present = set(facts)
        self.dense = present
        """Names of the tensors that are stored as they are."""
        self.kinds = {name: (found.kind, found.shape) for name, found in facts.items()}
        """Name -> safetensors' dtype and shape."""
        for tensor in self.packed.values():
            if tensor.name in present:
                raise ArtifactError(
                    f"{path}: {tensor.name}", "both a packed tensor and a dense one", "one of them", _AGAIN
                )
            names = set(tensor.parts.values())
            if missing := names - present:
                raise ArtifactError(
                    f"{path}: {tensor.name}", f"no '{min(missing)}'", "the parts of a packed tensor", _AGAIN
                )
            self._check_shapes(tensor)
            self.dense = self.dense - names
        for name in self.dense:
            stem = name.removesuffix("_values")
            others = [f"{stem}_{part}" for part in PARTS if part != "values"]
            if stem != name and any(other in present for other in others):
                raise ArtifactError(f"{path}: {name}", "parts of a tensor", "its name in the metadata", _AGAIN)

    def verify(self) -> None:
        """Compare the file's bytes with the checksum in the manifest beside it, where there is one.

        Raises:
            ArtifactError: the file or the manifest was altered.
        """
        manifest = self.path.with_name(MANIFEST)
        if not manifest.is_file():
            return
        facts = read_sealed_json(manifest, "a checkpoint's manifest")["files"].get(self.path.name)
        if facts is not None and (got := checksum(self.path)) != facts["checksum"]:
            raise ArtifactError(str(self.path), f"checksum {got}", f"checksum {facts['checksum']}", _AGAIN)

    def parts(self, name: str) -> Parts:
        """Return the parts of a packed tensor, checked.

        Raises:
            ArtifactError: they are not a packed matrix.
        """
        tensor = self.packed[name]
        parts = Parts(**{part: self._read(stored) for part, stored in tensor.parts.items()})
        check_packed(f"{self.path}: {name}", tensor.layout, parts)
        return parts

    def read(self, name: str) -> Tensor:
        """Return a tensor as it was before packing.

        Raises:
            ArtifactError: its parts are not a packed matrix.
        """
        if name not in self.packed:
            return self._read(name)
        tensor = self.packed[name]
        return tensor.restored(expand_rows(tensor.layout, self.parts(name), 0, tensor.rows))

    def _read(self, name: str) -> Tensor:
        return read_tensor(self.path, name)

    def _check_shapes(self, tensor: PackedTensor) -> None:
        """Raise unless the header gives the parts the shapes that the tensor's asks for: before anything is read."""
        layout, found = tensor.layout, {part: self.kinds[name] for part, name in tensor.parts.items()}
        where = f"{self.path}: {tensor.name}"
        kind, shape = found["values"]
        if kind != NAMES.get(layout.value_dtype) or len(shape) != 1:
            expected = f"{NAMES.get(layout.value_dtype)} of one dimension"
            raise ArtifactError(f"{where}_values", f"{found['values']}", expected, _AGAIN)
        if layout.masked:
            bits, offsets = ("U8", (layout.rows, words(layout.columns) * 8)), found["offsets"]
            if found["bitmask"] != bits:
                raise ArtifactError(f"{where}_bitmask", f"{found['bitmask']}", f"{bits}", _AGAIN)
            if offsets[0] not in ("I32", "I64") or offsets[1] != (layout.rows + 1,):
                expected = f"I32 or I64 of shape ({layout.rows + 1},)"
                raise ArtifactError(f"{where}_offsets", f"{offsets}", expected, _AGAIN)
        elif shape != (whole := (layout.rows * layout.stored(layout.columns) + layout.padding,)):
            raise ArtifactError(f"{where}_values", f"{shape}", f"{whole}", _AGAIN)
        if layout.codes is not None and found["scales"][0] not in ("F32", "F16", "BF16"):
            raise ArtifactError(f"{where}_scales", f"{found['scales']}", "F32, F16 or BF16", _AGAIN)


def restore_signs(tensor: PackedTensor, value: Tensor, bitmask: Tensor, where: str) -> Tensor:
    """Return `value` with -0.0 where a file of negative zeros says; these must be zeros that were left out.

    Raises:
        ArtifactError: the bitmask is of another shape, or names numbers that are not zero.
    """
    shape = (tensor.rows, words(tensor.columns) * 8)
    if bitmask.dtype != torch.uint8 or tuple(bitmask.shape) != shape:
        raise ArtifactError(where, f"{bitmask.dtype} {tuple(bitmask.shape)}", f"uint8 {shape}", _AGAIN)
    negative = tensor.restored(unpack_bits(bitmask, tensor.columns))
    if bool((nonzero(value) & negative).any()):
        raise ArtifactError(where, "signs of numbers that are not zero", "those of zeros", _AGAIN)
    put_negative_zeros(value, negative)
    return value
