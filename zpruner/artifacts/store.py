"""The only reader and writer of Arrow artifacts.

An artifact is a folder of Arrow IPC files, one per layer (or per captured input), and an `index.json` that names the
file, checksum and shape of each. Provenance stands in the index and in the schema metadata of every file. Every
reader checks checksum, schema, shape and provenance before a number is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor

from zpruner.artifacts.work import Work, atomic_file, read_sealed_json, write_sealed_json
from zpruner.errors import MEND, ArtifactError
from zpruner.runtime.background import Background
from zpruner.runtime.transfer import to_host

FORMAT = 1
INDEX = "index.json"
_WRITERS = 2
"""Files written at a time: one waits for the disk while the other is filled."""
_ARROW_TYPES = {
    torch.bool: pa.bool_(),
    torch.float32: pa.float32(),
    torch.float64: pa.float64(),
    torch.int32: pa.int32(),
    torch.int64: pa.int64(),
}


@dataclass(frozen=True)
class Provenance:
    """What an artifact was made from. Empty fields do not apply."""

    model: str = ""
    model_hash: str = ""
    calibration_hash: str = ""
    dtype: str = ""
    windows: int = 0
    tokens: int = 0
    method: str = ""
    settings: str = ""
    pattern: str = ""
    propagation: str = ""

    def require(self, other: Mapping[str, Any], where: Path) -> None:
        """Raise ArtifactError naming the first field in which the artifact at `where` says otherwise than self.

        Fields that are empty here are not compared.
        """
        for field in fields(self):
            expected, got = getattr(self, field.name), other.get(field.name)
            if expected and got != expected:
                raise ArtifactError(
                    str(where),
                    f"{field.name} {got!r}",
                    f"{expected!r}",
                    "It belongs to another model, calibration or method. " + MEND,
                )


class ArtifactWriter:
    """Writes one artifact layer by layer into a work folder, on background threads. Use `artifact_writer`.

    Args:
        work: the open work folder.
        kind: `activations`, `scores`, `masks`, `gradients` or `tokens`.
        provenance: goes into the index and every file.
    """

    def __init__(self, work: Work, kind: str, provenance: Provenance) -> None:
        self.work, self.kind, self.provenance = work, kind, provenance
        self._background = Background(_WRITERS, "artifact-writer")

    def write(self, name: str, columns: Mapping[str, Tensor], **facts: Any) -> None:
        """Queue one file: `columns` are 1-D (one value per row) or 2-D (one fixed-size list per row).

        `facts` are JSON values kept with the file in the index. Errors of earlier writes are raised here.
        """
        leaving = {key: to_host(tensor) for key, tensor in columns.items()}
        self._background.submit(partial(self._write, name, leaving, dict(facts)))

    def finish(self, out: Path, **extra: Any) -> None:
        """Wait for all files, write the index (with `extra` top-level entries) and publish the folder as `out`."""
        self.drain()
        entries = {name: facts for name, facts in self.work.items().items() if "file" in facts}
        index = {
            "format": FORMAT,
            "kind": self.kind,
            "provenance": asdict(self.provenance),
            "files": entries,
            **extra,
        }
        write_sealed_json(self.work.files / INDEX, index)
        self.work.publish(out)

    def drain(self) -> None:
        """Wait for everything queued; raise the first error."""
        self._background.drain()

    def close(self) -> None:
        """Stop the background threads."""
        self._background.close()

    def _write(self, name: str, leaving: Mapping[str, Callable[[], Tensor]], facts: dict[str, Any]) -> None:
        columns = {key: fetch() for key, fetch in leaving.items()}
        table = _to_table(columns, {"kind": self.kind, "name": name, **asdict(self.provenance)})
        file = f"{name}.arrow"
        with atomic_file(self.work.files / file) as sink:
            write_table(table, sink)
        shapes = {key: list(value.shape) for key, value in columns.items()}
        facts |= {"file": file, "checksum": sink.checksum, "bytes": sink.bytes, "columns": shapes}
        self.work.record(name, facts, self.work.files / file, sink.checksum)


@contextmanager
def artifact_writer(work: Work, kind: str, provenance: Provenance) -> Iterator[ArtifactWriter]:
    """Open `work` and yield a writer into it; the lock and the threads are released at the end."""
    with work:
        writer = ArtifactWriter(work, kind, provenance)
        try:
            yield writer
        finally:
            writer.close()


class ArtifactReader:
    """Reads an artifact folder; see the module's docstring for what is checked.

    Args:
        folder: the artifact.
        kind: what it must be.
        expected: provenance that it must have; empty fields are not compared.

    Raises:
        ArtifactError: missing, of another kind, or made from something else.
    """

    def __init__(self, folder: Path, kind: str, expected: Provenance | None = None) -> None:
        self.folder = folder
        path = folder / INDEX
        self.index: dict[str, Any] = read_sealed_json(path, f"the index of {kind}")
        if self.index.get("format") != FORMAT or self.index.get("kind") != kind:
            raise ArtifactError(
                str(path),
                f"format {self.index.get('format')!r} of kind {self.index.get('kind')!r}",
                f"format {FORMAT} of kind {kind!r}",
                MEND,
            )
        self.provenance = Provenance(**self.index["provenance"])
        (expected or Provenance()).require(self.index["provenance"], path)
        self.files: dict[str, dict[str, Any]] = self.index["files"]

    @property
    def digest(self) -> str:
        """A digest of the whole artifact: the index holds the checksum of every file."""
        return xxhash.xxh3_128_hexdigest((self.folder / INDEX).read_bytes())

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the columns of one file as tensors, after checking checksum, schema, shape and provenance.

        Raises:
            ArtifactError: names the file and what is wrong with it.
        """
        facts = self.files.get(name)
        if facts is None:
            raise ArtifactError(str(self.folder), f"no entry for '{name}'", f"one of {len(self.files)} layers", MEND)
        path = self.folder / facts["file"]
        data = _read_checked(path, facts["checksum"])
        table = _open_table(path, data)
        metadata = read_metadata(table.schema, path)
        Provenance(**asdict(self.provenance)).require(metadata, path)
        columns = _to_tensors(table, path)
        shapes = {key: list(value.shape) for key, value in columns.items()}
        if shapes != facts["columns"]:
            raise ArtifactError(str(path), f"columns {shapes}", f"{facts['columns']}", MEND)
        return columns


def write_table(table: pa.Table, sink: Any) -> None:
    """Write a table as one record batch of an Arrow IPC file, without compression so that it can be memory-mapped."""
    batches = table.combine_chunks().to_batches(max_chunksize=None)
    with pa.ipc.new_file(sink, table.schema) as out:
        for batch in batches:
            out.write_batch(batch)


def write_file(path: Path, columns: Mapping[str, Tensor], kind: str, facts: Mapping[str, Any]) -> None:
    """Write a single-file artifact (such as the token windows) atomically, with `facts` as schema metadata."""
    with atomic_file(path) as sink:
        write_table(_to_table({key: tensor.cpu() for key, tensor in columns.items()}, {"kind": kind, **facts}), sink)


def read_file(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return columns and metadata of a single-file artifact written by `write_file`.

    Raises:
        ArtifactError: missing, truncated, altered, or of another kind.
    """
    if not path.is_file():
        raise ArtifactError(str(path), "no file", f"an Arrow file of kind {kind!r}", "Run `dvc repro` first.")
    table = _open_table(path, bytearray(path.read_bytes()))
    metadata = read_metadata(table.schema, path)
    # No index holds a checksum of this file, so that its buffers may be shorter than its schema says.
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ArtifactError(str(path), f"damaged columns ({error})", "an Arrow IPC file", MEND) from None
    if metadata.get("kind") != kind:
        raise ArtifactError(str(path), f"kind {metadata.get('kind')!r}", f"kind {kind!r}", MEND)
    return _to_tensors(table, path), metadata


def read_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    """Return the provenance that a file carries in its schema.

    Raises:
        ArtifactError: the file carries none, or of another format.
    """
    raw = (schema.metadata or {}).get(b"zpruner")
    try:
        metadata = json.loads(raw) if raw is not None else None
    except ValueError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ArtifactError(str(path), "no readable provenance", f"an artifact of format {FORMAT}", MEND)
    return metadata


def _to_table(columns: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> pa.Table:
    arrays = {name: _to_array(tensor) for name, tensor in columns.items()}
    facts = {"format": FORMAT, "library": version("zpruner"), **metadata}
    schema_metadata = {b"zpruner": json.dumps(facts, sort_keys=True).encode()}
    return pa.table(arrays).replace_schema_metadata(schema_metadata)


def _to_array(tensor: Tensor) -> pa.Array:
    values = tensor.contiguous().numpy().reshape(-1)
    bits = np.packbits(values, bitorder="little") if tensor.dtype == torch.bool else values
    flat = pa.Array.from_buffers(_ARROW_TYPES[tensor.dtype], tensor.numel(), [None, pa.py_buffer(bits)])
    return flat if tensor.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, tensor.shape[1])


def _read_checked(path: Path, expected: str) -> bytearray:
    try:
        size = path.stat().st_size
        data = bytearray(size)
        with path.open("rb") as file:
            file.readinto(data)
    except FileNotFoundError:
        raise ArtifactError(str(path), "no file", "a file that the index names", MEND) from None
    got = xxhash.xxh3_128_hexdigest(data)
    if got != expected:
        raise ArtifactError(str(path), f"checksum {got} of {size} bytes", f"checksum {expected}", MEND)
    return data


def _open_table(path: Path, data: bytearray) -> pa.Table:
    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        chunks = [column.num_chunks for column in table.columns]  # decodes the columns' names
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # Arrow raises any of them on altered bytes
        raise ArtifactError(str(path), f"bytes that Arrow cannot read ({error})", "an Arrow IPC file", MEND) from None
    if any(n > 1 for n in chunks):
        raise ArtifactError(str(path), "several record batches", "one", MEND)
    return table


def _to_tensors(table: pa.Table, path: Path) -> dict[str, Tensor]:
    return {
        name: _to_tensor(column.chunk(0), path) if column.num_chunks else torch.empty(0)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _to_tensor(array: pa.Array, path: Path) -> Tensor:
    width = array.type.list_size if pa.types.is_fixed_size_list(array.type) else None
    flat = array.flatten() if width is not None else array
    if nulls := array.null_count or flat.null_count:
        raise ArtifactError(str(path), f"{nulls} nulls", "a value in every row", MEND)
    if not len(flat):
        raise ArtifactError(str(path), "an empty column", "at least one value", MEND)
    if pa.types.is_boolean(flat.type):
        bits = np.frombuffer(flat.buffers()[1], dtype=np.uint8)
        values = np.unpackbits(bits, count=flat.offset + len(flat), bitorder="little")[flat.offset :]
        tensor = torch.from_numpy(values.view(np.bool_))
    else:
        dtype = next((torch_type for torch_type, arrow in _ARROW_TYPES.items() if arrow == flat.type), None)
        if dtype is None:
            raise ArtifactError(str(path), f"a column of {flat.type}", "numbers", MEND)
        raw = np.frombuffer(flat.buffers()[1], dtype=np.uint8)[: (flat.offset + len(flat)) * dtype.itemsize]
        tensor = torch.from_numpy(raw.copy()).view(dtype)[flat.offset :]
    return tensor if width is None else tensor.reshape(len(array), width)
