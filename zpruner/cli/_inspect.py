"""`zpruner inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpruner.cli import _options as option
from zpruner.errors import ArtifactError
from zpruner.runtime.plain_json import read_json

if TYPE_CHECKING:
    from torch import Tensor

    from zpruner.artifacts.store import ArtifactReader


def inspect(
    artifact: Annotated[
        Path,
        typer.Argument(
            metavar="ARTIFACT", parser=option.folder, help="An .arrow file, an artifact folder, or a checkpoint folder."
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="List every layer, not only the first ten.")] = False,
) -> None:
    """Say what an artifact is, what it was made from and what is in it, after checking every byte."""
    if artifact.is_file():
        lines = _file(artifact)
    elif (artifact / "index.json").is_file():
        lines = _folder(artifact)
    elif (artifact / "config.json").is_file():
        lines = _checkpoint(artifact)
    else:
        found = "no such path" if not artifact.exists() else "neither index.json nor config.json in it"
        raise ArtifactError(
            str(artifact),
            found,
            "an .arrow file, an artifact folder or a checkpoint folder",
            "Name a folder that holds one of these files.",
        )
    facts, entries = lines
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        typer.echo(f"{name:<{width}}  {value}")
    typer.echo()
    for entry in entries if every else entries[:10]:
        typer.echo(f"  {entry}")
    if len(entries) > 10 and not every:
        typer.echo(f"  and {len(entries) - 10} more (--all lists them)")


Lines = tuple[list[tuple[str, str]], list[str]]


def _file(path: Path) -> Lines:
    """Describe one Arrow file; one that belongs to an artifact folder is checked against its index."""
    if path.suffix == ".safetensors":
        raise ArtifactError(str(path), "one file of a checkpoint", "the folder that holds it", f"Try {path.parent}.")
    from zpruner.artifacts.arrow import read_file

    try:
        columns, metadata = read_file(path, _kind(path))
    except ArtifactError as error:
        action = "If the pipeline made it, delete it and run `dvc repro`; of other files there is nothing to say."
        raise ArtifactError(error.where, error.got, error.expected, action) from None
    facts = [("kind", str(metadata.get("kind"))), ("bytes", f"{path.stat().st_size:,}")]
    facts += _provenance(metadata, leave_out=("kind",))
    if metadata.get("kind") == "tokens":
        from zpruner.text import read_windows

        read_windows(path)
        facts.append(("windows", "match their hash"))
    checked = False
    if (path.parent / "index.json").is_file():
        reader = _reader(path.parent)
        name = next((n for n, entry in reader.files.items() if entry["file"] == path.name), None)
        if name is not None:
            reader.read(name)
            checked = True
    if checked:
        facts.append(("checksum", "matches the index"))
    entries = [f"{name}: {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in columns.items()]
    if "keep" in columns:
        entries.append(f"sparsity: {1 - float(columns['keep'].double().mean()):.4%}")
    return facts, entries


def _folder(folder: Path) -> Lines:
    reader = _reader(folder)
    sizes = [int(entry["bytes"]) for entry in reader.files.values()]
    facts = [
        ("kind", str(reader.index["kind"])),
        ("files", f"{len(sizes)}, {sum(sizes):,} bytes, every checksum right"),
    ]
    facts += _provenance(reader.index["provenance"])
    entries, kept, weights = [], 0, 0
    for name, entry in reader.files.items():
        columns = reader.read(name)
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in columns.items())
        text = f"{name}: {shapes}, {entry['bytes']:,} bytes"
        if "keep" in columns:
            count = int(columns["keep"].sum())
            kept, weights = kept + count, weights + columns["keep"].numel()
            text += f", sparsity {1 - count / columns['keep'].numel():.4%}"
        entries.append(text)
    if weights:
        facts.append(("sparsity", f"{1 - kept / weights:.4%} of {weights:,} weights"))
    return facts, entries


def _checkpoint(folder: Path) -> Lines:
    from zpruner.checkpoint import MANIFEST, Checkpoint

    if (folder / MANIFEST).is_file():
        checkpoint = Checkpoint(folder)
        checkpoint.verify_all()
        sizes, checked = [entry.bytes for entry in checkpoint.files.values()], "every checksum right"
        made_from = _provenance(checkpoint.manifest, leave_out=("files",))
        tensors: Iterator[tuple[str, Tensor]] = ((name, checkpoint.read(name)) for name in checkpoint.names())
    else:
        shards = _shards(folder)
        sizes, checked = [shard.stat().st_size for shard in shards], f"no {MANIFEST}, so no checksums"
        others = sorted(path.name for path in folder.glob("*.safetensors") if path not in shards)
        made_from = [("not read", f"{', '.join(others)} (no file that transformers loads)")] if others else []
        tensors = _tensors(shards)
    facts = [("kind", "checkpoint"), ("files", f"{len(sizes)}, {sum(sizes):,} bytes, {checked}"), *made_from]
    entries, zeros, weights = [], 0, 0
    for name, tensor in tensors:
        text = f"{name}: {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        if tensor.ndim >= 2:
            empty = int((tensor == 0).sum())
            text += f", zeros {empty / tensor.numel():.4%}"
            zeros, weights = zeros + empty, weights + tensor.numel()
        entries.append(text)
    facts.append(("zeros", f"{zeros / max(weights, 1):.4%} of {weights:,} matrix weights, embeddings included"))
    return facts, entries


def _shards(folder: Path) -> list[Path]:
    """Return the files that transformers would load, none of those beside them."""
    from transformers import PretrainedConfig

    from zpruner.model.config import one_sentence
    from zpruner.model.weight_files import weight_files

    with one_sentence(folder / "config.json", "the config of a model"):
        config = PretrainedConfig.from_pretrained(folder)  # of no family: no code of the model is run
    return weight_files(folder, config)[0]


def _tensors(shards: list[Path]) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    for shard in shards:
        try:
            with safe_open(shard, "pt") as file:
                yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise ArtifactError(
                str(shard), f"no whole safetensors file ({error})", "one", "Get the checkpoint again."
            ) from None


def _reader(folder: Path) -> ArtifactReader:
    from zpruner.artifacts.store import ArtifactReader

    try:
        kind = read_json(folder / "index.json").get("kind", "")
    except (ValueError, AttributeError):
        kind = ""  # the reader says what is wrong with it
    return ArtifactReader(folder, kind)


def _kind(path: Path) -> str:
    """Return what an Arrow file says it is; `read_file` explains one that says nothing."""
    import pyarrow as pa

    from zpruner.artifacts.arrow import read_metadata

    try:
        with pa.memory_map(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
    except (pa.ArrowException, OSError):
        return ""
    return str(read_metadata(schema, path).get("kind"))


def _provenance(values: dict[str, Any], leave_out: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    return [
        (key, str(value)) for key, value in sorted(values.items()) if value not in ("", None) and key not in leave_out
    ]
