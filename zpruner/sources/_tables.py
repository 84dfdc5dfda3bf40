"""Parquet and Arrow tables: a column of strings, or of token ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import ShapeMismatchError, SourceError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = (".parquet",)
ARROW = (".arrow", ".feather")


def read_table(path: Path, ending: str) -> pa.Table:
    """Read a Parquet file, an Arrow IPC file, or a stream as the `datasets` library writes it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if ending in PARQUET:
        return pq.read_table(path)
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
