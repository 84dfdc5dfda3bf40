"""A packed checkpoint made into what it was packed from, one tensor in memory at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from zpruner.artifacts.files import atomic_file, write_json
from zpruner.checkpoint import MANIFEST, Checkpoint, Stored, write_manifest, write_tensors
from zpruner.checkpoint.manifest import SHARD_INDEX
from zpruner.errors import ArtifactError
from zpruner.model.stored import read_tensor, tensor_facts
from zpruner.packed.layout import INDEX, METHOD, SIGNS, WEIGHTS
from zpruner.packed.pack import CARD, signs_name
from zpruner.packed.reader import PackedFile, packed_files, restore_signs
from zpruner.packed.source import raw_bytes
from zpruner.runtime.plain_json import read_json
from zpruner.runtime.progress import counter


def unpack(folder: str | Path, out: str | Path, step: Callable[[], None] | None = None) -> None:
    """Write the checkpoint that `folder` was packed from; every file is compared with the checksum of the original.

    A folder that `save_pretrained` wrote knows no original: its tensors are written under their names.

    Args:
        folder: a packed checkpoint.
        out: an existing, empty folder.
        step: called after each file, in place of showing progress.

    Raises:
        ArtifactError: a file that is missing, truncated or altered, or that does not give the original's bytes.
    """
    folder, out = Path(folder), Path(out)
    known = Checkpoint(folder).manifest if (folder / MANIFEST).is_file() else {}
    if known:
        Checkpoint(folder).verify_all()
    files = packed_files(folder)
    original = _original(folder, known)
    for path in sorted(folder.iterdir()):
        if (
            not path.name.startswith(".")
            and path.is_file()
            and path not in files
            and path.name not in (INDEX, MANIFEST)
            and not _is_signs(path)
        ):
            shutil.copyfile(path, out / path.name)
    if original and len(files) != len(original["files"]):
        raise ArtifactError(
            str(folder),
            f"{len(files)} files",
            f"{len(original['files'])}: one for each of the original",
            "Pack it again.",
        )
    with counter("unpack", len(files), "file") if step is None else nullcontext(step) as finished:
        if not original:
            _write_anew(folder, files, out, finished)
            return
        for path, (name, facts) in zip(files, original["files"].items(), strict=True):
            _write_original(PackedFile(path), out / name, facts)
            finished()
    if original["card"]:
        (out / CARD).unlink(missing_ok=True)
    for name, text in original["texts"].items():
        with atomic_file(out / name) as file:
            file.write(text.encode())


def _original(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of the checkpoint that was packed, after checking that no name leads elsewhere.

    Raises:
        ArtifactError: it is not what `pack` writes.
    """
    original = manifest.get("packed")
    if original is None:
        return {}
    try:
        for name in [*original["files"], *original["texts"]]:
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts or "\\" in name or not inside.name:
                raise ValueError(f"the name '{name[:60]}'")
        for facts in original["files"].values():
            tensors = json.loads(facts["header"])
            for name in tensors.keys() - {"__metadata__"}:
                int(tensors[name]["data_offsets"][0])
            str(facts["checksum"])
        return {key: original[key] for key in ("files", "texts", "card")}
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ArtifactError(
            str(folder / MANIFEST),
            f"no description of the original ({error})",
            "that of `zpruner pack`",
            "Pack it again.",
        ) from None


def _write_original(packed: PackedFile, out: Path, facts: Mapping[str, Any]) -> None:
    """Write a file with the original's header, and its tensors in their order."""
    header = facts["header"].encode()
    order = json.loads(header)
    names = sorted(order.keys() - {"__metadata__"}, key=lambda name: order[name]["data_offsets"])
    signs = packed.path.with_name(signs_name(packed.path.name))
    negative = set(tensor_facts(signs)) if signs.is_file() else set()
    with atomic_file(out) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in names:
            tensor = packed.read(name)
            if name in negative:
                where = f"{signs}: {name}"
                tensor = restore_signs(packed.packed[name], tensor, read_tensor(signs, name), where)
            file.write(raw_bytes(tensor))
    if file.checksum != facts["checksum"]:
        raise ArtifactError(
            str(packed.path), f"what unpacks to checksum {file.checksum}", facts["checksum"], "Pack the model again."
        )


def _write_anew(folder: Path, files: list[Path], out: Path, step: Callable[[], None]) -> None:
    """Write the tensors of a folder that knows no original under the names that transformers looks for."""
    weight_map: dict[str, str] = {}
    size = 0
    for path in files:
        packed = PackedFile(path)
        name = path.name.replace("zpruner", "model", 1)
        tensors = {found: _later(packed, found) for found in sorted(packed.dense | packed.packed.keys())}
        with atomic_file(out / name) as file:
            size += write_tensors(file, tensors)
        weight_map |= dict.fromkeys(tensors, name)
        step()
    if files[0].name != WEIGHTS:
        write_json(out / SHARD_INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
    try:
        config = read_json(folder / "config.json")
        config.pop("transformers_weights", None)
        method = (config.pop("quantization_config", None) or {}).get("quant_method")
    except (OSError, ValueError, TypeError, AttributeError):
        method = None
    if method != METHOD:
        raise ArtifactError(
            str(folder), "a config.json that is not of a packed checkpoint", METHOD, "Check the folder."
        )
    write_json(out / "config.json", config)
    write_manifest(out, folder.name)


def _later(packed: PackedFile, name: str) -> Stored:
    if name in packed.packed:
        tensor = packed.packed[name]
        return Stored(tensor.dtype, tensor.shape, partial(packed.read, name))
    return tensor_facts(packed.path)[name].later(name, partial(packed.read, name))


def _is_signs(path: Path) -> bool:
    return path.name.startswith(SIGNS.removesuffix(".safetensors")) and path.suffix == ".safetensors"
