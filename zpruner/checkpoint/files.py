"""Checkpoints on disk: read tensor by tensor, write shard by shard, never as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from zpruner.artifacts.files import atomic_file, checksum, write_json
from zpruner.artifacts.work import Work
from zpruner.checkpoint.conversion import Conversion, Converted
from zpruner.checkpoint.manifest import MANIFEST, SHARD_INDEX, read_manifest, tokenizer_hash, write_manifest
from zpruner.checkpoint.tensors import write_tensors
from zpruner.errors import MEND, ArtifactError, ModelStructureError
from zpruner.model.empty import empty_model
from zpruner.model.layers import PrunableLayer
from zpruner.model.stored import Facts, Stored, read_tensor, tensor_facts
from zpruner.runtime.background import Background


class Checkpoint:
    """A Hugging Face checkpoint folder with a manifest of its files' checksums, read one tensor at a time.

    Config, tokenizer, code and headers are checked here; the values of a safetensors file before the first of them is
    used, once.

    Args:
        folder: written by `write_manifest`.
        expected: entries that the manifest must have, such as its role.

    Raises:
        ArtifactError: a file is missing, altered or too many, or the manifest is another's.
    """

    def __init__(self, folder: Path, expected: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.manifest, self.files = read_manifest(folder)
        for key, value in (expected or {}).items():
            if self.manifest.get(key) != value:
                got = f"{key} {self.manifest.get(key)!r}"
                raise ArtifactError(str(folder / MANIFEST), got, f"{value!r}", f"It belongs elsewhere. {MEND}")
        self.converted = tuple(Converted(tuple(p), tuple(t)) for p, t in self.manifest.get("converted", ()))
        """What the model has in another form than it is stored in."""
        self._converted = {name: entry for entry in self.converted for name in entry.parameters}
        self._last: tuple[Converted, dict[str, Tensor]] | None = None
        self._verified = {name for name in self.files if not name.endswith(".safetensors")}
        self._verifying = Lock()  # tensors are read in several threads
        shards = (folder / name for name in self.files if name.endswith(".safetensors"))
        self._tensors = {name: facts for shard in shards for name, facts in tensor_facts(shard).items()}

    @property
    def model_hash(self) -> str:
        """Content hash of the weights and config of the checkpoint."""
        return str(self.manifest["hash"])

    @property
    def model(self) -> str:
        """The source that the model came from."""
        return str(self.manifest["model"])

    @property
    def dtype(self) -> str:
        """The type of its weights, by torch's name."""
        name = str(self.manifest.get("dtype"))
        if not isinstance(getattr(torch, name, None), torch.dtype):
            raise ArtifactError(str(self.folder / MANIFEST), f"dtype {name!r}", "one of torch's", MEND)
        return name

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the files that hold its tensors."""
        return sum(facts.bytes for name, facts in self.files.items() if name.endswith(".safetensors"))

    @property
    def tokenizer_hash(self) -> str:
        """Digest of the files that decide how text becomes tokens."""
        return tokenizer_hash(self.files)

    def names(self) -> list[str]:
        """Return the names of all tensors, in file order."""
        return list(self._tensors)

    def facts(self, name: str) -> Facts:
        """Return what is known of one tensor before it is read."""
        return self._tensors[name]

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, after checking its file against the manifest (once per file).

        Raises:
            ModelStructureError: no tensor of that name in the checkpoint.
            ArtifactError: the file was altered.
        """
        facts = self._tensors.get(name)
        if facts is None:
            raise ModelStructureError(
                str(self.folder),
                f"no tensor '{name}'",
                "every prunable weight under its own name in the checkpoint",
                "List the layer under model.ignore in params.yaml.",
            )
        self.verify(facts.file.name)
        return read_tensor(facts.file, name)

    def later(self, name: str) -> Stored:
        """Return one tensor, to be read when it is written."""
        return self._tensors[name].later(name, lambda: self.read(name))

    def read_weight(self, layer: PrunableLayer) -> Tensor:
        """Return a layer's weight as (out, in), in the checkpoint's dtype."""
        entry = self._converted.get(layer.tensor)
        if entry is None:
            parameter = self.read(layer.tensor)
        else:
            if self._last is None or self._last[0] != entry:  # the experts in it follow each other
                self._last = (entry, self.read_parameters(entry))
            parameter = self._last[1][layer.tensor]
        shape, expected = tuple(parameter.shape), (layer.out_features, layer.in_features)
        if layer.parts == 1 and parameter.ndim == 2:
            shape = tuple(layer.view(parameter).shape)
        elif parameter.numel() == layer.parts * layer.out_features * layer.in_features:
            shape = expected
        if shape != expected:
            raise ModelStructureError(
                f"layer {layer.name}",
                f"a stored weight of shape {shape}",
                f"({layer.out_features}, {layer.in_features})",
                "List the layer under model.ignore in params.yaml.",
            )
        return layer.view(parameter)

    def read_bias(self, layer: PrunableLayer) -> Tensor | None:
        """Return a layer's bias (out,), in the checkpoint's dtype; None where it has none."""
        if layer.bias is None:
            return None
        return layer.view_bias(self.read_parameters(self.entry(layer.bias))[layer.bias])

    def entry(self, parameter: str) -> Converted:
        """Return the stored tensors that a parameter of the model is made of, with what else they make."""
        return self._converted.get(parameter) or Converted((parameter,), (parameter,))

    def read_parameters(self, entry: Converted) -> dict[str, Tensor]:
        """Return parameters as the model has them, by name, contiguous."""
        stored = {name: self.read(name) for name in entry.stored}
        if entry not in self.converted:
            return stored
        return {name: tensor.contiguous() for name, tensor in self.conversion.to_parameters(stored).items()}

    @cached_property
    def conversion(self) -> Conversion:
        """The conversions between stored tensors and the model's parameters."""
        conversion = Conversion(empty_model(self.folder))
        for name in self._tensors:
            conversion.targets(name)  # only conversions that matched are undone
        return conversion

    def verify(self, file: str) -> None:
        """Raise ArtifactError unless the file's bytes are the manifest's."""
        with self._verifying:
            if file not in self._verified:
                expected = self.files[file].checksum
                if (got := checksum(self.folder / file)) != expected:
                    raise ArtifactError(str(self.folder / file), f"checksum {got}", f"checksum {expected}", MEND)
                self._verified.add(file)

    def verify_all(self) -> None:
        """Raise ArtifactError unless every file's bytes are the manifest's."""
        for file in self.files:
            self.verify(file)

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Verify every file while the block reads them all, in a thread beside it.

        Raises:
            ArtifactError: a file was altered; it comes before an error of the block, which damage may have caused.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="verify") as pool:
            verified = pool.submit(self.verify_all)
            try:
                yield
            finally:
                verified.result()


Change = Callable[[PrunableLayer, Tensor], Tensor]
"""Given a layer, and its weight (out, in) or its bias (out,), returns what it becomes."""


def change_parameters(
    layer: PrunableLayer, parameters: Mapping[str, Tensor], prune: Change, bias: Change | None
) -> None:
    """Change in place what `parameters`, by name, has of a layer; its bias stays where `bias` is None."""
    if layer.tensor in parameters:
        weight = layer.view(parameters[layer.tensor])
        weight.copy_(prune(layer, weight))
    if bias is not None and layer.bias is not None and layer.bias in parameters:
        vector = layer.view_bias(parameters[layer.bias])
        vector.copy_(bias(layer, vector))


def write_pruned(
    dense: Checkpoint,
    layers: tuple[PrunableLayer, ...],
    prune: Change,
    work: Work,
    facts: Mapping[str, Any],
    on_shard: Callable[[], None],
    card: str,
    *,
    bias: Change | None = None,
    moves: Mapping[str, Callable[[Tensor], None]] = MappingProxyType({}),
) -> None:
    """Write a pruned copy of `dense` into `work.files`, shard by shard; finished shards are not written again.

    A shard is written by a background thread, which journals it once it is on disk, while the next one is pruned: two
    are in memory at most.

    The first shard holds every tensor that the method does not change, so that its bytes are the same in every variant
    that leaves biases and the order as they are; then comes one shard per decoder block.

    Args:
        dense: the unpruned checkpoint.
        layers: the prunable layers.
        prune: given a layer and its dense weight (out, in) in the checkpoint's dtype, returns the new weight.
        work: the open work folder.
        facts: goes into the manifest.
        on_shard: called after each shard, for progress.
        card: text of README.md, the model card.
        bias: as `prune`, of a layer's bias (out,); None: biases stay.
        moves: parameter -> what puts it into another order in place, before it is pruned; most stay as they are.
    """
    changed: dict[Converted, list[PrunableLayer]] = {}
    for layer in layers:
        changed.setdefault(dense.entry(layer.tensor), []).append(layer)
        if bias is not None and layer.bias is not None:
            changed.setdefault(dense.entry(layer.bias), []).append(layer)
    stored = {*dense.names(), *(name for entry in dense.converted for name in entry.parameters)}
    for name in moves.keys() & stored:  # of tied parameters one is stored
        changed.setdefault(dense.entry(name), [])
    blocks = sorted({layer.block for layer in layers})
    pruned_names = {name for entry in changed for name in entry.stored}
    kept = [Converted((name,), (name,)) for name in dense.names() if name not in pruned_names]
    kept += [entry for entry, found in changed.items() if not found]
    shards = [kept, *([e for e, found in changed.items() if found and found[0].block == block] for block in blocks)]
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    with closing(Background(1, "shard-writer")) as background:
        for shard, entries in zip(names, shards, strict=True):
            if work.done(shard) is None:
                tensors = {name: dense.later(name) for entry in entries for name in entry.stored}
                for entry in (found for found in entries if found in changed):
                    made = _pruned(dense, entry, changed[entry], prune, bias, moves)
                    tensors |= {n: replace(tensors[n], read=partial(made.pop, n)) for n in entry.stored}
                background.submit(partial(_write_shard, work, shard, tensors))
                del tensors
            on_shard()
        background.drain()
    weight_map = {n: shard for shard, found in zip(names, shards, strict=True) for e in found for n in e.stored}
    size = sum(work.items()[shard]["tensor_bytes"] for shard in names)
    for name in dense.files:
        if not name.endswith(".safetensors") and name != SHARD_INDEX:
            dense.verify(name)
            shutil.copyfile(dense.folder / name, work.files / name)
    with atomic_file(work.files / "README.md") as file:
        file.write(card.encode())
    write_json(work.files / SHARD_INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    write_manifest(
        work.files, dense.model, **facts, **({"converted": dense.manifest["converted"]} if dense.converted else {})
    )


def _write_shard(work: Work, shard: str, tensors: Mapping[str, Stored]) -> None:
    with atomic_file(work.files / shard) as file:
        facts = {"tensor_bytes": write_tensors(file, tensors)}
    work.record(shard, facts, work.files / shard, file.checksum)


def _pruned(
    dense: Checkpoint,
    entry: Converted,
    layers: list[PrunableLayer],
    prune: Change,
    bias: Change | None,
    moves: Mapping[str, Callable[[Tensor], None]],
) -> dict[str, Tensor]:
    """Return the stored tensors of `entry`, by name, in their order and with its layers pruned."""
    parameters = dense.read_parameters(entry)
    for name in parameters.keys() & moves.keys():
        moves[name](parameters[name])
    for layer in layers:
        change_parameters(layer, parameters, prune, bias)
    return dense.conversion.to_stored(parameters) if entry in dense.converted else parameters
