"""A checkpoint made smaller by leaving its zeros out, one tensor in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from zpruner.artifacts.files import atomic_file, write_json
from zpruner.checkpoint import MANIFEST, Stored, write_manifest, write_tensors
from zpruner.checkpoint.manifest import SHARD_INDEX, read_manifest
from zpruner.errors import MEND, ArtifactError, SourceError
from zpruner.kernels.parts import words
from zpruner.model.weight_files import weight_files
from zpruner.packed.content import Known, check_integers, describe, packed_size
from zpruner.packed.encode import bitmask_of, negative_zeros
from zpruner.packed.layout import (
    INDEX,
    SIGNS,
    UNREGISTERED,
    WEIGHTS,
    PackedTensor,
    metadata_of,
    quantization_config,
)
from zpruner.packed.size import MIN_SPARSITY, Kinds, bitmask_bytes
from zpruner.packed.source import FileDigest, WeightFile, other_files, read_plain_config
from zpruner.runtime.progress import counter

CARD = "README.md"
_CHANGED = ("config.json", MANIFEST, SHARD_INDEX)


class Journal(Protocol):
    """What is finished, as `zpruner.artifacts.work.Work` remembers it."""

    def done(self, item: str) -> dict[str, Any] | None:
        """Return the payload of a finished item, or None."""

    def record(self, item: str, payload: Mapping[str, Any], file: Path | None = None, digest: str = "") -> None:
        """Remember an item as finished."""


class Memory:
    """A journal for a run that starts anew when it is interrupted."""

    def __init__(self) -> None:
        self._items: dict[str, dict[str, Any]] = {}

    def done(self, item: str) -> dict[str, Any] | None:
        """Return the payload of a finished item, or None."""
        return self._items.get(item)

    def record(self, item: str, payload: Mapping[str, Any], file: Path | None = None, digest: str = "") -> None:
        """Remember an item as finished."""
        self._items[item] = dict(payload)


@dataclass(frozen=True)
class Savings:
    """What packing saved.

    Attributes:
        dense: bytes of the weights before.
        packed: bytes of the weights after, those of negative zeros included.
        tensors: how many were packed.
        weights: numbers in them.
        kept: of these.
        negative_zeros: numbers that are -0.0, which take a bitmask of their own.
        weights_dense, weights_packed: bytes of the packed tensors before and after.
    """

    dense: int = 0
    packed: int = 0
    tensors: int = 0
    weights: int = 0
    kept: int = 0
    negative_zeros: int = 0
    weights_dense: int = 0
    weights_packed: int = 0

    @property
    def share(self) -> float:
        """Bytes after over bytes before."""
        return self.packed / self.dense if self.dense else 1.0

    def __add__(self, other: Savings) -> Savings:
        return Savings(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


@dataclass
class _Plan:
    """What becomes of one file."""

    packed: dict[str, tuple[PackedTensor, Kinds]] = field(default_factory=dict)
    """name -> the tensor, and the dtypes and shapes of its parts"""
    signs: dict[str, PackedTensor] = field(default_factory=dict)
    savings: Savings = Savings()
    checksum: str = ""


def pack(
    folder: str | Path,
    out: str | Path,
    known: Known | None = None,
    *,
    journal: Journal | None = None,
    step: Callable[[], None] | None = None,
    facts: Mapping[str, Any] | None = None,
    card: str | None = None,
    trust_remote_code: bool = False,
) -> Savings:
    """Write a packed copy of a checkpoint folder; `unpack` gives back its very bytes.

    Every tensor of two or more dimensions is packed that has zeros enough for it to become smaller: what is kept is
    what the mask says, and any other number that is not zero. Of quantised tensors integers and scales are stored.

    Args:
        folder: a checkpoint in safetensors.
        out: an existing folder, empty or left by an interrupted run with the same journal.
        known: what is known of the tensors beside their numbers.
        journal: what is finished; None: nothing is.
        step: called after each file, in place of showing progress.
        facts: go into the manifest.
        card: text of README.md; None: the source's own.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        SourceError, ModelStructureError: not a causal language model, or nothing in it becomes smaller.
        ArtifactError: a file that cannot be read or is not its manifest's; a checkpoint that is packed already;
            integers that do not make a tensor.
    """
    folder, out = Path(folder), Path(out)
    facts_by_file = read_manifest(folder)[1] if (folder / MANIFEST).is_file() else {}
    described, config = read_plain_config(folder, trust_remote_code=trust_remote_code)
    files, _ = weight_files(folder, described)
    journal = Memory() if journal is None else journal
    known = Known() if known is None else known
    several = len(files) > 1
    names = [
        f"zpruner-{n:05d}-of-{len(files):05d}.safetensors" if several else WEIGHTS for n in range(1, len(files) + 1)
    ]
    source: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    total = Savings()
    with counter("pack", len(files), "file") if step is None else nullcontext(step) as finished:
        for file, name in zip(files, names, strict=True):
            entry = journal.done(name)
            if entry is None:
                entry = _pack_file(WeightFile.open(file), out, name, known)
                journal.record(name, entry, out / name, entry["digest"])
            facts_of = facts_by_file.get(file.name)
            if facts_of is not None and facts_of.checksum != entry["source"]["checksum"]:
                got = f"checksum {entry['source']['checksum']}"
                raise ArtifactError(str(file), got, f"checksum {facts_of.checksum}", MEND)
            total += Savings(**entry["savings"])
            source[file.relative_to(folder).as_posix()] = entry["source"]
            weight_map |= dict.fromkeys(entry["names"], name)
            finished()
    if not total.tensors:
        raise SourceError(
            str(folder),
            f"no tensor with {MIN_SPARSITY:.0%} of zeros or more",
            "a pruned checkpoint",
            "Prune it first: packing would make nothing smaller.",
        )
    if several:
        write_json(out / INDEX, {"metadata": {"total_size": total.packed}, "weight_map": weight_map})
    config |= {
        "quantization_config": quantization_config(INDEX if several else WEIGHTS),
        "transformers_weights": UNREGISTERED,
    }
    write_json(out / "config.json", config)
    texts = {}
    for path in other_files(folder):
        if path.name in _CHANGED or (path.name == CARD and card is not None):
            texts[path.name] = path.read_bytes().decode()
        else:
            shutil.copyfile(path, out / path.name)
    if card is not None:
        with atomic_file(out / CARD) as page:
            page.write(card.encode())
    model = _model(folder, texts)
    packed = {"files": source, "texts": texts, "card": card is not None}
    write_manifest(out, model, **{"role": "packed", **(facts or {})}, packed=packed, savings=vars(total))
    return total


def _pack_file(file: WeightFile, out: Path, name: str, known: Known) -> dict[str, Any]:
    """Write one packed file, and that of its negative zeros where it has any; return what the journal remembers."""
    plan = _plan(file, known)
    written = _tensors(file, plan, known)
    described = [tensor for tensor, _ in plan.packed.values()]
    with atomic_file(out / name) as opened:
        write_tensors(opened, written, metadata_of(described))
    digest = opened.checksum
    if plan.signs:
        where = out / signs_name(name)
        signs = {name: _signs(file, tensor) for name, tensor in plan.signs.items()}
        with atomic_file(where) as opened:
            write_tensors(opened, signs, metadata_of(plan.signs.values()))
    return {
        "digest": digest,
        "names": sorted(written),
        "savings": vars(plan.savings),
        "source": {"header": file.prefix[8:].decode(), "checksum": plan.checksum},
    }


def signs_name(name: str) -> str:
    """Return the file of the negative zeros that the packed file `name` leaves out."""
    return SIGNS if name == WEIGHTS else name.replace("zpruner-", "negative_zeros-", 1)


def _plan(file: WeightFile, known: Known) -> _Plan:
    """Read every tensor once: what is kept of it, and the checksum of the file."""
    plan, digest = _Plan(), FileDigest(file.prefix)
    taken = set(file.names)
    for name, stored in file.tensors():
        tensor = stored.read()
        digest.add(tensor)
        savings = Savings(dense=stored.bytes, packed=stored.bytes)
        if tensor.ndim >= 2 and tensor.numel() and not tensor.is_complex() and tensor.dtype != torch.bool:
            content = describe(name, tensor, known)
            size = packed_size(content)
            if size is not None:
                check_integers(f"{file.path}: {name}", content)
                if clash := taken & set(content.tensor.parts.values()):
                    raise ArtifactError(
                        f"{file.path}: {name}", f"a tensor named '{min(clash)}'", "that name free", "Rename it."
                    )
                plan.packed[name] = (content.tensor, content.kinds())
                kept, negative = int(content.keep.sum()), int(content.negative().sum())
                if negative:
                    plan.signs[name] = content.tensor
                    size += bitmask_bytes(content.tensor.rows, content.tensor.columns)
                savings = Savings(stored.bytes, size, 1, tensor.numel(), kept, negative, stored.bytes, size)
        plan.savings += savings
    plan.checksum = digest.hex()
    return plan


def _tensors(file: WeightFile, plan: _Plan, known: Known) -> dict[str, Stored]:
    """Return what the packed file holds. Each part of a tensor is made when it is written."""
    written: dict[str, Stored] = {}
    for name, stored in file.tensors():
        if name not in plan.packed:
            written[name] = stored
            continue
        tensor, kinds = plan.packed[name]
        for part, (dtype, shape) in kinds.items():
            written[tensor.parts[part]] = Stored(dtype, shape, partial(_part, name, stored, known, part))
    return written


def _part(name: str, stored: Stored, known: Known, part: str) -> Tensor:
    return describe(name, stored.read(), known).part(part)


def _signs(file: WeightFile, tensor: PackedTensor) -> Stored:
    stored = dict(file.tensors())[tensor.name]

    def read() -> Tensor:
        return bitmask_of(tensor.matrix(negative_zeros(stored.read())))

    return Stored(torch.uint8, (tensor.rows, words(tensor.columns) * 8), read)


def _model(folder: Path, texts: Mapping[str, str]) -> str:
    """Return the source that the model came from, where a manifest knows it."""
    manifest = json.loads(texts[MANIFEST]) if MANIFEST in texts else {}
    return str(manifest.get("model", folder.name))
