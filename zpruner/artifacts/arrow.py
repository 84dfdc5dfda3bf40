"""Arrow IPC files: tensors as columns, with what they were made from in the schema. Any Arrow reader opens them.

pyarrow is imported by what reads or writes one: whoever only loads a model need not hold its 24 MB.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zpruner.artifacts.files import atomic_file, read_artifact
from zpruner.errors import MEND, ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 1
_ARROW_TYPES = {
    torch.bool: "bool",
    torch.float32: "float",
    torch.float64: "double",
    torch.int32: "int32",
    torch.int64: "int64",
}
"""As Arrow calls them."""


def write_table(table: pa.Table, sink: Any) -> None:
    """Write a table as one record batch of an Arrow IPC file, without compression so that it can be memory-mapped."""
    import pyarrow as pa

    batches = table.combine_chunks().to_batches(max_chunksize=None)
    with pa.ipc.new_file(sink, table.schema) as out:
        for batch in batches:
            out.write_batch(batch)


def write_file(path: Path, columns: Mapping[str, Tensor], kind: str, facts: Mapping[str, Any]) -> None:
    """Write a single-file artifact (such as the token windows) atomically, with `facts` as schema metadata."""
    with atomic_file(path) as sink:
        write_table(to_table({key: tensor.cpu() for key, tensor in columns.items()}, {"kind": kind, **facts}), sink)


def read_file(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return columns and metadata of a single-file artifact written by `write_file`.

    Raises:
        ArtifactError: missing, truncated, altered, or of another kind.
    """
    import pyarrow as pa

    table = open_table(path, read_artifact(path, f"an Arrow file of kind {kind!r}"))
    metadata = read_metadata(table.schema, path)
    # No index holds a checksum of this file, so that its buffers may be shorter than its schema says.
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise ArtifactError(str(path), f"damaged columns ({error})", "an Arrow IPC file", MEND) from None
    if metadata.get("kind") != kind:
        raise ArtifactError(str(path), f"kind {metadata.get('kind')!r}", f"kind {kind!r}", MEND)
    return to_tensors(table, path), metadata


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


def to_table(columns: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> pa.Table:
    """Return tensors as the columns of a table whose schema carries `metadata`."""
    import pyarrow as pa

    arrays = {name: _to_array(tensor) for name, tensor in columns.items()}
    facts = {"format": FORMAT, "library": version("zpruner"), **metadata}
    schema_metadata = {b"zpruner": json.dumps(facts, sort_keys=True).encode()}
    return pa.table(arrays).replace_schema_metadata(schema_metadata)


def _to_array(tensor: Tensor) -> pa.Array:
    import pyarrow as pa

    values = tensor.contiguous().numpy().reshape(-1)
    bits = np.packbits(values, bitorder="little") if tensor.dtype == torch.bool else values
    flat = pa.Array.from_buffers(
        pa.type_for_alias(_ARROW_TYPES[tensor.dtype]), tensor.numel(), [None, pa.py_buffer(bits)]
    )
    return flat if tensor.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, tensor.shape[1])


def open_table(path: Path, data: bytes | bytearray) -> pa.Table:
    """Return the table that the bytes of the file at `path` hold.

    Raises:
        ArtifactError: not one record batch of an Arrow IPC file.
    """
    import pyarrow as pa

    try:
        table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
        chunks = [column.num_chunks for column in table.columns]  # decodes the columns' names
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:  # Arrow raises any of them on altered bytes
        raise ArtifactError(str(path), f"bytes that Arrow cannot read ({error})", "an Arrow IPC file", MEND) from None
    if any(n > 1 for n in chunks):
        raise ArtifactError(str(path), "several record batches", "one", MEND)
    return table


def to_tensors(table: pa.Table, path: Path) -> dict[str, Tensor]:
    """Return the columns of a table as tensors.

    Raises:
        ArtifactError: a column that holds nulls, nothing, or no numbers.
    """
    return {
        name: _to_tensor(column.chunk(0), path) if column.num_chunks else torch.empty(0)
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _to_tensor(array: pa.Array, path: Path) -> Tensor:
    import pyarrow as pa

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
        dtype = next((torch_type for torch_type, arrow in _ARROW_TYPES.items() if arrow == str(flat.type)), None)
        if dtype is None:
            raise ArtifactError(str(path), f"a column of {flat.type}", "numbers", MEND)
        raw = np.frombuffer(flat.buffers()[1], dtype=np.uint8)[: (flat.offset + len(flat)) * dtype.itemsize]
        tensor = torch.from_numpy(raw.copy()).view(dtype)[flat.offset :]
    return tensor if width is None else tensor.reshape(len(array), width)
