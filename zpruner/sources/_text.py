"""Any text source, made into documents or a table of token ids."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import InvalidSettingError, ShapeMismatchError, SourceError
from zpruner.runtime.quiet import first_line
from zpruner.sources._hash import checked_sha256, file_sha256, require_sha256, texts_sha256
from zpruner.sources._hub import fetch_hub_file, load_hub_table, require_pinned
from zpruner.sources._package import fetch_package_file
from zpruner.sources._parse import HubRef, LocalPath, PackageFile, parse_source

if TYPE_CHECKING:
    import pyarrow as pa

TOKEN_COLUMN = "input_ids"

_PARQUET = {".parquet"}
_ARROW = {".arrow", ".feather"}
_JSON_LINES = {".jsonl", ".ndjson", ".json"}


@dataclass(frozen=True)
class Documents:
    """Texts in their order; `source` names them in errors."""

    source: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(text.strip() for text in self.texts):
            raise SourceError(self.source, "no text", "at least one document", "Give another source.")


@dataclass(frozen=True)
class TokenTable:
    """Token ids: int32 (rows, length); `source` names them in errors."""

    source: str
    input_ids: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.input_ids.ndim != 2 or self.input_ids.dtype != np.int32 or 0 in self.input_ids.shape:
            raise ShapeMismatchError(
                f"{TOKEN_COLUMN} of {self.source}",
                f"{self.input_ids.dtype} of shape {self.input_ids.shape}",
                "int32 of shape (rows, length), neither of them 0",
                "Store one window of token ids per row.",
            )


def read_text(
    source: str,
    sha256: str | None,
    downloads: Path,
    *,
    column: str = "text",
    config: str | None = None,
    split: str | None = None,
    documents: Literal["file", "lines"] = "file",
) -> Documents | TokenTable:
    """Obtain a text and return its documents, or its token ids when it is a table with a column `input_ids`.

    Files named .jsonl, .ndjson or .json hold one JSON object per line; .parquet, .arrow and .feather are tables;
    any other file is UTF-8 text. `.gz` after these names means gzip, tables excepted.

    Args:
        source: see `parse_source`; a file, or a data set on the hub, read with the `datasets` library.
        sha256: of the file, or, for a whole data set, `texts_sha256` of its documents; None: not checked.
            Required for pip: sources.
        downloads: where downloaded files are kept.
        column: the column or key that holds the text.
        config: the data set's configuration; data sets only.
        split: the data set's split; data sets only, and required there.
        documents: whether a plain text file is one document ("file") or one per non-empty line ("lines").

    Raises:
        InvalidSettingError: a malformed source or hash, or a setting that does not apply to it.
        SourceError: it cannot be obtained or read, or has no such column.
        HashMismatchError: it has another hash.
        ShapeMismatchError: rows of `input_ids` of unequal length.
    """
    parsed = parse_source(source)
    expected = checked_sha256(source, sha256)
    if isinstance(parsed, HubRef) and parsed.file is None:
        _refuse_setting(documents == "lines", source, "documents: lines", "plain text files")
        require_pinned(parsed, expected)
        result = _from_table(load_hub_table(parsed, config, split, downloads), column, source)
        if isinstance(result, Documents) and expected is not None:
            require_sha256(source, texts_sha256(result.texts), expected)
        elif expected is not None:
            raise InvalidSettingError(
                f"sha256 of {source}", "a hash", "null for token ids on the hub", "Pin the commit in the source."
            )
        return result
    _refuse_setting(config is not None or split is not None, source, "config or split", "data sets on the hub")
    return _read_file(_obtain(parsed, source, expected, downloads), column, documents, source)


def _obtain(parsed: PackageFile | HubRef | LocalPath, source: str, sha256: str | None, downloads: Path) -> Path:
    """Return the path of the checked file."""
    match parsed:
        case PackageFile():
            return fetch_package_file(parsed, sha256, downloads)
        case HubRef(file=str(file)):
            return fetch_hub_file(parsed, file, sha256, downloads, "dataset")
        case LocalPath(path) if path.is_file():
            if sha256 is not None:
                require_sha256(source, file_sha256(path), sha256)
            return path
        case _:
            raise SourceError(source, "no such file", "a file of text, JSON lines, Parquet or Arrow", "Correct it.")


def _read_file(path: Path, column: str, documents: str, source: str) -> Documents | TokenTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    is_table = suffix in _PARQUET | _ARROW | _JSON_LINES
    _refuse_setting(is_table and documents == "lines", source, "documents: lines", "plain text files")
    try:
        if suffix in _PARQUET:
            return _from_table(pq.read_table(path), column, source)
        if suffix in _ARROW:
            return _from_table(_read_arrow(path), column, source)
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8-sig")
        if suffix in _JSON_LINES:
            return _from_json_lines(text, column, source)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        raise SourceError(
            source,
            f"content that cannot be read ({first_line(error)})",
            f"a whole {suffix} file" if is_table else "UTF-8 text",
            "Get it again, or correct its name: the ending says how it is read.",
        ) from None
    lines = tuple(line for line in text.splitlines() if line.strip())
    return Documents(source, lines if documents == "lines" else (text,))


def _read_arrow(path: Path) -> pa.Table:
    """Read an Arrow IPC file, or stream as the `datasets` library writes it."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        try:
            return pa.ipc.open_file(file).read_all()
        except pa.ArrowInvalid:
            file.seek(0)
            return pa.ipc.open_stream(file).read_all()


def _from_json_lines(text: str, column: str, source: str) -> Documents | TokenTable:
    import pyarrow as pa

    # Not str.splitlines(): JSON strings may hold line separators other than the newline.
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise SourceError(source, "a line that is no JSON object", "one object per line", "Correct the file.")
    key = TOKEN_COLUMN if rows and TOKEN_COLUMN in rows[0] else column
    if not all(key in row for row in rows):
        raise _no_column(source, key, rows[0])
    return _from_table(pa.table({key: pa.array([row[key] for row in rows])}), column, source)


def _from_table(table: pa.Table, column: str, source: str) -> Documents | TokenTable:
    import pyarrow as pa

    if TOKEN_COLUMN in table.column_names:
        return TokenTable(source, _token_ids(table.column(TOKEN_COLUMN), source))
    if column not in table.column_names:
        raise _no_column(source, column, table.column_names)
    texts = table.column(column)
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)) or texts.null_count:
        raise SourceError(
            source,
            f"column {column} of type {texts.type} with {texts.null_count} nulls",
            "strings without nulls",
            "Name another column.",
        )
    return Documents(source, tuple(texts.to_pylist()))


def _token_ids(column: pa.ChunkedArray, source: str) -> NDArray[np.int32]:
    """Return a list column of integers as int32 (rows, length)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    where = f"{TOKEN_COLUMN} of {source}"
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not pa.types.is_integer(kind.value_type) or column.null_count or not len(column):
        raise SourceError(where, f"a column of type {kind}", "lists of integers, no nulls", "Correct the table.")
    lengths = pc.list_value_length(column).to_numpy()
    if odd := np.flatnonzero(lengths != lengths[0]).tolist():
        raise ShapeMismatchError(
            where,
            f"{lengths[0]} token ids in row 0 and {lengths[odd[0]]} in row {odd[0]}",
            "rows of equal length",
            "Cut or drop the odd rows.",
        )
    values = pc.list_flatten(column).combine_chunks()
    if values.null_count:
        raise SourceError(where, "null token ids", "integers", "Correct the table.")
    return values.cast(pa.int32()).to_numpy().reshape(len(column), -1).astype(np.int32, copy=True)


def _no_column(source: str, column: str, known: object) -> SourceError:
    names = ", ".join(map(str, known)) if isinstance(known, list | dict) else str(known)
    return SourceError(source, f"no column {column}", f"one of {names}", "Set column.")


def _refuse_setting(is_set: bool, source: str, setting: str, applies_to: str) -> None:
    if is_set:
        raise InvalidSettingError(source, setting, f"it for {applies_to} only", "Remove it, or change the source.")
