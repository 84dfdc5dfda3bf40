"""Parquet and Arrow tables: a column of strings, or of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import ShapeMismatchError, SourceError
from zpruner.sources._unpack import TooLargeError, size_limit

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet",)
ARROW = (".arrow", ".feather")
_INDEX = 4
"""Bytes that a value of a column takes in memory at least."""


def read_table(path: Path, ending: str) -> pa.Table:
    """Read a Parquet file, an Arrow IPC file, or a stream as the `datasets` library writes it.

    Raises:
        TooLargeError: values, or strings that a dictionary repeats, of more bytes than `size_limit` of the file's.
    """
    limit = size_limit(path.stat().st_size)
    table = _read_parquet(path, limit) if ending in PARQUET else _read_ipc(path)
    if table.nbytes > limit or any(_written_out(column) > limit for column in table.columns):
        raise TooLargeError.of_ratio()
    return table


def _read_parquet(path: Path, limit: int) -> pa.Table:
    """Read a file whose strings stay in dictionaries where they are so stored: a page may repeat one for ever."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        columns = [group.column(index) for group in groups for index in range(group.num_columns)]
        plain = sum(max(_INDEX * column.num_values, column.total_uncompressed_size) for column in columns)
        if plain > limit:
            raise TooLargeError.of_ratio()
        texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
    return pq.read_table(path, read_dictionary=texts)


def _written_out(column: pa.ChunkedArray) -> int:
    """Return the bytes of strings that a dictionary repeats, once each stands for itself."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if not pa.types.is_dictionary(kind) or not (
        pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type)
    ):
        return 0
    sizes = (pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() for chunk in column.chunks)
    return sum(size or 0 for size in sizes)


def _read_ipc(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def text_column(table: pa.Table, column: str, source: str) -> tuple[str, ...]:
    """Return a column of strings, however it is encoded (plain, views, dictionary).

    Raises:
        SourceError: no such column, another type, or nulls.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column not in table.column_names:
        raise SourceError(source, f"no column {column}", f"one of {', '.join(table.column_names)}", "Set column.")
    texts = table.column(column)
    kind = texts.type.value_type if pa.types.is_dictionary(texts.type) else texts.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        got = f"column {column} of type {texts.type}"
        raise SourceError(source, got, "strings without nulls", "Name another column.")
    texts = texts.cast(pa.large_string())
    if texts.null_count:
        row = pc.index(pc.is_null(texts), True).as_py() + 1
        got = f"column {column} with {texts.null_count} nulls, the first in row {row}"
        raise SourceError(source, got, "strings without nulls", "Drop these rows, or name another column.")
    return tuple(texts.to_pylist())


def token_column(table: pa.Table, column: str, source: str) -> NDArray[np.int32]:
    """Return a list column of integers as int32 (rows, length).

    Raises:
        SourceError: another type, or nulls.
        ShapeMismatchError: rows of unequal length.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    where, lists = f"{column} of {source}", table.column(column)
    kind = lists.type
    is_list = any(
        check(kind)
        for check in (
            pa.types.is_list,
            pa.types.is_large_list,
            pa.types.is_fixed_size_list,
            pa.types.is_list_view,
            pa.types.is_large_list_view,
        )
    )
    if not is_list or not pa.types.is_integer(kind.value_type) or lists.null_count or not len(lists):
        raise SourceError(where, f"a column of type {kind}", "lists of integers, no nulls", "Correct the table.")
    lengths = pc.list_value_length(lists).to_numpy()
    if odd := np.flatnonzero(lengths != lengths[0]).tolist():
        raise ShapeMismatchError(
            where,
            f"{lengths[0]} token ids in row 0 and {lengths[odd[0]]} in row {odd[0]}",
            "rows of equal length",
            "Cut or drop the odd rows.",
        )
    values = pc.list_flatten(lists).combine_chunks()
    if values.null_count:
        raise SourceError(where, "null token ids", "integers", "Correct the table.")
    return values.cast(pa.int32()).to_numpy().reshape(len(lists), -1).astype(np.int32, copy=True)
