"""The smaller checkpoint, written block by block from the whole one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zpruner.artifacts.files import atomic_file, write_json
from zpruner.artifacts.work import Work
from zpruner.checkpoint.conversion import Converted, find_converted
from zpruner.checkpoint.files import Change, Checkpoint, change_parameters
from zpruner.checkpoint.manifest import SHARD_INDEX, write_manifest
from zpruner.checkpoint.tensors import write_tensors
from zpruner.model.config import quiet_transformers
from zpruner.model.layers import Inventory, PrunableLayer
from zpruner.model.stored import Stored
from zpruner.runtime.background import Background
from zpruner.structures.coupling import Couplings
from zpruner.structures.cut import cut_config, renamed
from zpruner.structures.slicing import Cuts, cut_tensor, cuts_of


def write_cut(
    dense: Checkpoint,
    inventory: Inventory,
    couplings: Couplings,
    keep: Mapping[str, Tensor],
    prune: Change,
    work: Work,
    facts: Mapping[str, Any],
    on_shard: Callable[[], None],
    card: str,
    *,
    bias: Change | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write `dense` without some of its structures into `work.files`; finished shards are not written again.

    The first shard holds what lies outside the decoder blocks, then comes one for each block that stays. While one is
    written by a background thread the next is made: two blocks are in memory at most.

    Args:
        dense: the whole checkpoint.
        inventory: of the model.
        couplings: of the model.
        keep: name of a coupling -> bool (count,), which structures stay; couplings that are left out keep all.
        prune: given a layer and its dense weight (out, in) in the checkpoint's dtype, returns the new weight, zeros in
            place.
        work: the open work folder.
        facts: goes into the manifest.
        on_shard: called after each shard, for progress.
        card: text of README.md, the model card.
        bias: as `prune`, of a layer's bias (out,); None: biases stay, but for what is cut of them.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        InvalidPatternError, ShapeMismatchError, ModelStructureError: as `cut_config`; nothing has been written then.
    """
    config = cut_config(dense.conversion.model.config, couplings, keep)
    shards = _shards(dense, inventory, couplings, keep)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    cuts = cuts_of(couplings.found, keep)
    layers: dict[str, list[PrunableLayer]] = {}
    for layer in inventory.layers:
        for name in (layer.tensor, *([layer.bias] if layer.bias else [])):
            layers.setdefault(name, []).append(layer)
    with closing(Background(1, "shard-writer")) as background:
        for shard, entries in zip(names, shards, strict=True):
            if work.done(shard) is None:
                made: dict[str, Tensor] = {}
                for entry in entries:
                    made |= _smaller(dense, entry, couplings, keep, cuts, layers, prune, bias)
                background.submit(partial(_write_shard, work, shard, made))
                del made
            on_shard()
        background.drain()
    for name in dense.files:
        if not name.endswith(".safetensors") and name not in (SHARD_INDEX, "config.json"):
            dense.verify(name)
            shutil.copyfile(dense.folder / name, work.files / name)
    with quiet_transformers():
        config.save_pretrained(work.files)
    with atomic_file(work.files / "README.md") as file:
        file.write(card.encode())
    written = {shard: work.items()[shard] for shard in names}
    weight_map = {name: shard for shard, items in written.items() for name in items["tensors"]}
    size = sum(items["tensor_bytes"] for items in written.values())
    write_json(work.files / SHARD_INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    converted = find_converted(work.files, trust_remote_code=trust_remote_code) if dense.converted else []
    write_manifest(work.files, dense.model, **facts, **({"converted": converted} if converted else {}))


def _shards(
    dense: Checkpoint, inventory: Inventory, couplings: Couplings, keep: Mapping[str, Tensor]
) -> list[list[Converted]]:
    """Return what makes up each shard: what lies outside the blocks, then every block that stays."""
    found: dict[int, dict[Converted, None]] = {-1: {}}
    for entry in _entries(dense):
        first = entry.parameters[0]
        if renamed(first, couplings, keep) is None:
            continue
        inside = first.startswith(f"{inventory.blocks}.")
        block = int(first.removeprefix(f"{inventory.blocks}.").split(".")[0]) if inside else -1
        found.setdefault(block, {})[entry] = None
    return [list(found[block]) for block in sorted(found) if found[block]]


def _entries(dense: Checkpoint) -> Iterator[Converted]:
    """Yield everything that a checkpoint stores, in its order."""
    made = {name: entry for entry in dense.converted for name in entry.stored}
    yield from dict.fromkeys(made.get(name) or Converted((name,), (name,)) for name in dense.names())


def _smaller(
    dense: Checkpoint,
    entry: Converted,
    couplings: Couplings,
    keep: Mapping[str, Tensor],
    cuts: Cuts,
    layers: Mapping[str, list[PrunableLayer]],
    prune: Change,
    bias: Change | None,
) -> dict[str, Tensor]:
    """Return the stored tensors of `entry` in the smaller model, by name."""
    found = {}
    for name, parameter in dense.read_parameters(entry).items():
        for layer in layers.get(name, ()):
            change_parameters(layer, {name: parameter}, prune, bias)
        new = renamed(name, couplings, keep)
        assert new is not None, name
        with torch.no_grad():
            found[new] = cut_tensor(parameter, cuts[name]) if name in cuts else parameter
    return dense.conversion.to_stored(found) if entry in dense.converted else found


def _write_shard(work: Work, shard: str, tensors: Mapping[str, Tensor]) -> None:
    stored = {name: Stored.of(tensor) for name, tensor in tensors.items()}
    with atomic_file(work.files / shard) as file:
        facts = {"tensor_bytes": write_tensors(file, stored), "tensors": sorted(stored)}
    work.record(shard, facts, work.files / shard, file.checksum)
