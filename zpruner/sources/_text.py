"""Any text source, made into documents or a table of token ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from zpruner.errors import InvalidSettingError, ShapeMismatchError, SourceError
from zpruner.runtime.quiet import first_line
from zpruner.sources._form import Remote
from zpruner.sources._hash import checked_sha256, require_content, require_sha256, texts_sha256
from zpruner.sources._hub import HubRef, load_hub_table, require_pinned
from zpruner.sources._json_lines import read_json_lines
from zpruner.sources._parse import LocalPath, Source, parse_source
from zpruner.sources._tables import ARROW, PARQUET, read_table, text_column, token_column
from zpruner.sources._unpack import ARCHIVES, PACKED, unpack

if TYPE_CHECKING:
    import pyarrow as pa

TOKEN_COLUMN = "input_ids"

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_MARKS = (
    (b"\xff\xfe\0\0", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x1f\x8b", "a file packed by gzip"),
    (b"\x28\xb5\x2f\xfd", "a file packed by zstd"),
    (b"\xfd7zXZ\0", "a file packed by xz"),
    (b"PK\3\4", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
)
"""First bytes of what is no UTF-8 text, and what it is."""
_RENAME = "correct its name: the ending says how it is read."


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
    any other file is UTF-8 text, whose lines end with \\n or \\r\\n. After these names, tables excepted, .gz, .bz2, .xz
    and .zst say how the file is packed. Endings count in any case.

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


def _obtain(parsed: Source, source: str, sha256: str | None, downloads: Path) -> Path:
    """Return the path of the checked file."""
    match parsed:
        case Remote():
            return parsed.fetch(sha256, downloads, "dataset")
        case LocalPath(path) if path.is_file():
            require_content(source, path, sha256)
            return path
        case _:
            raise SourceError(
                source,
                "no such file",
                "a file of text, JSON lines, Parquet or Arrow",
                "Look at the spelling of the path.",
            )


def _read_file(path: Path, column: str, documents: str, source: str) -> Documents | TokenTable:
    import pyarrow as pa

    endings = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = endings.pop() if endings and endings[-1] in PACKED else ""
    ending = endings[-1] if endings else ""
    is_table = ending in PARQUET + ARROW
    if ending in ARCHIVES or (packed and is_table):
        known = ", ".join(PACKED)
        raise SourceError(
            source, f"a file packed as {ending}{packed}", f"text unpacked or packed as {known}", "Unpack it."
        )
    is_lines = ending in _JSON_LINES
    _refuse_setting((is_table or is_lines) and documents == "lines", source, "documents: lines", "plain text files")
    try:
        if is_table:
            return _from_table(read_table(path, ending), column, source)
        data = unpack(path, packed) if packed else path.read_bytes()
    except (pa.ArrowException, OSError, EOFError, ValueError, zlib.error) as error:
        got, expected = f"content that cannot be read ({first_line(error)})", f"a whole {ending}{packed} file"
        raise SourceError(source, got, expected, f"Get it again, or {_RENAME}") from None
    text = _decode(data, source)
    if is_lines:
        found = read_json_lines(lines_of(text), column, TOKEN_COLUMN, source)
        return Documents(source, found) if isinstance(found, tuple) else TokenTable(source, found)
    return Documents(
        source, tuple(line for line in lines_of(text) if line.strip()) if documents == "lines" else (text,)
    )


def lines_of(text: str) -> Iterator[str]:
    """Yield the lines of a text, which end with \\n or \\r\\n and nothing else: not str.splitlines()."""
    return (line.removesuffix("\r") for line in text.split("\n"))


def _decode(data: bytes, source: str) -> str:
    """Return UTF-8 text; UTF-16 without a mark passes for it, but for its NUL bytes."""
    got = next((kind for mark, kind in _MARKS if data.startswith(mark)), None)
    if got is None and (place := data.find(b"\0")) >= 0:
        got = f"a NUL byte at byte {place}, as text in UTF-16 has them"
    if got is None:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            got = f"content that cannot be read ({first_line(error)})"
    raise SourceError(source, got, "UTF-8 text", f"Convert it (iconv -t UTF-8), or {_RENAME}")


def _from_table(table: pa.Table, column: str, source: str) -> Documents | TokenTable:
    if TOKEN_COLUMN in table.column_names:
        return TokenTable(source, token_column(table, TOKEN_COLUMN, source))
    return Documents(source, text_column(table, column, source))


def _refuse_setting(is_set: bool, source: str, setting: str, applies_to: str) -> None:
    if is_set:
        raise InvalidSettingError(source, setting, f"it for {applies_to} only", "Remove it, or change the source.")
