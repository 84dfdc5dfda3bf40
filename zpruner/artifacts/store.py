"""The only reader and writer of artifacts that are folders of Arrow files.

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
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from zpruner.artifacts.arrow import FORMAT, open_table, read_metadata, to_table, to_tensors, write_table
from zpruner.artifacts.files import atomic_file, read_artifact, read_sealed_json, write_sealed_json
from zpruner.artifacts.work import Work
from zpruner.errors import MEND, ArtifactError
from zpruner.runtime.background import Background
from zpruner.runtime.transfer import to_host

INDEX = "index.json"
_SUFFIXES = {"solved": "safetensors"}
"""Kinds of artifacts whose files are no Arrow files."""
_WRITERS = 2
"""Files written at a time: one waits for the disk while the other is filled."""


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
        kind: `activations`, `scores`, `masks`, `gradients`, `generated` and the like.
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
        write_index(self.work.files, self.kind, self.provenance, entries, **extra)
        self.work.publish(out)

    def drain(self) -> None:
        """Wait for everything queued; raise the first error."""
        self._background.drain()

    def close(self) -> None:
        """Stop the background threads."""
        self._background.close()

    def _write(self, name: str, leaving: Mapping[str, Callable[[], Tensor]], facts: dict[str, Any]) -> None:
        columns = {key: fetch() for key, fetch in leaving.items()}
        table = to_table(columns, {"kind": self.kind, "name": name, **asdict(self.provenance)})
        file = f"{name}.arrow"
        with atomic_file(self.work.files / file) as sink:
            write_table(table, sink)
        shapes = {key: list(value.shape) for key, value in columns.items()}
        facts |= {"file": file, "checksum": sink.checksum, "bytes": sink.bytes, "columns": shapes}
        self.work.record(name, facts, self.work.files / file, sink.checksum)


def write_index(
    folder: Path, kind: str, provenance: Provenance, files: Mapping[str, Mapping[str, Any]], **extra: Any
) -> None:
    """Write the index of an artifact: name -> file, checksum, bytes and shapes, and `extra` top-level entries."""
    index = {"format": FORMAT, "kind": kind, "provenance": asdict(provenance), "files": files, **extra}
    write_sealed_json(folder / INDEX, index)


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
        self.index, self.provenance = _read_index(path, kind)
        (expected or Provenance()).require(self.index["provenance"], path)
        self.files: dict[str, dict[str, Any]] = self.index["files"]

    @property
    def digest(self) -> str:
        """A digest of the whole artifact: the index holds the checksum of every file."""
        return xxhash.xxh3_128_hexdigest((self.folder / INDEX).read_bytes())

    def read_matrix(self, name: str, column: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """Return one column of one file, which must be of the type and shape that its layer asks for.

        Raises:
            ArtifactError: as `read`; another type or shape, or no such column.
        """
        found = self.read(name).get(column)
        if found is None or found.dtype != dtype or tuple(found.shape) != shape:
            got = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
            where = str(self.folder / self.files[name]["file"])
            raise ArtifactError(where, f"{got} as '{column}'", f"{dtype} of shape {shape}", MEND)
        return found

    def read(self, name: str) -> dict[str, Tensor]:
        """Return the columns of one file as tensors, after checking checksum, schema, shape and provenance.

        Raises:
            ArtifactError: names the file and what is wrong with it.
        """
        path, data = self.read_bytes(name)
        table = open_table(path, data)
        metadata = read_metadata(table.schema, path)
        Provenance(**asdict(self.provenance)).require(metadata, path)
        columns = to_tensors(table, path)
        shapes = {key: list(value.shape) for key, value in columns.items()}
        if shapes != self.files[name]["columns"]:
            raise ArtifactError(str(path), f"columns {shapes}", f"{self.files[name]['columns']}", MEND)
        return columns

    def read_bytes(self, name: str) -> tuple[Path, bytes]:
        """Return the path and the bytes of one file, after checking its checksum.

        Raises:
            ArtifactError: names the file and what is wrong with it.
        """
        facts = self.files.get(name)
        if facts is None:
            raise ArtifactError(str(self.folder), f"no entry for '{name}'", f"one of {len(self.files)} layers", MEND)
        path = self.folder / facts["file"]
        return path, _read_checked(path, facts["checksum"])


class _FileFacts(BaseModel):
    """What an index says of a file; the stages add their own facts."""

    model_config = ConfigDict(extra="allow", strict=True)

    file: str
    checksum: str
    bytes: int
    columns: dict[str, list[int]]


class _Index(BaseModel):
    """What every index has; the stages add their own entries."""

    model_config = ConfigDict(extra="allow", strict=True)

    provenance: Provenance
    files: dict[str, _FileFacts]


def _read_index(path: Path, kind: str) -> tuple[dict[str, Any], Provenance]:
    """Return an index and its provenance, after checking its seal and form."""
    index = read_sealed_json(path, f"the index of {kind}")
    if index.get("format") != FORMAT or index.get("kind") != kind:
        raise ArtifactError(
            str(path),
            f"format {index.get('format')!r} of kind {index.get('kind')!r}",
            f"format {FORMAT} of kind {kind!r}",
            MEND,
        )
    try:
        found = _Index.model_validate_json(json.dumps(index))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(str(path), f"an index with another '{where}'", f"the index of {kind}", MEND) from None
    suffix = _SUFFIXES.get(kind, "arrow")
    for name, facts in found.files.items():
        if facts.file != f"{name}.{suffix}" or Path(facts.file).name != facts.file:  # none leads out of the folder
            raise ArtifactError(str(path), f"file {facts.file!r} for '{name}'", f"{name}.{suffix}", MEND)
    return index, found.provenance


def _read_checked(path: Path, expected: str) -> bytes:
    data = read_artifact(path, "a file that the index names")
    if (got := xxhash.xxh3_128_hexdigest(data)) != expected:
        raise ArtifactError(str(path), f"checksum {got} of {len(data)} bytes", f"checksum {expected}", MEND)
    return data
