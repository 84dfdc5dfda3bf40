"""Unpacking in bounded memory: a file may unpack to a hundred times its size, no more."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar", ".lz4", ".br", ".lzma", ".z", ".zstd", ".bz", ".tbz2", ".txz")
"""Ends of names that say a file is packed in a way that is not read."""

_RATIO = 100
_FREE = 1 << 26
_CHUNK = 1 << 20


class TooLargeError(ValueError):
    """What unpacks to far more than a real text or model would."""

    @classmethod
    def of_ratio(cls) -> TooLargeError:
        """Return the error of what is larger than `size_limit`."""
        return cls(f"it unpacks to more than {_RATIO} times its size")


def size_limit(packed: int) -> int:
    """Return the most bytes that `packed` bytes may unpack to: a hundred times as many, at least 64 MiB."""
    return max(_FREE, _RATIO * packed)


def unpack(path: Path, ending: str) -> bytes:
    """Return what a file packed as `ending` says holds.

    Raises:
        TooLargeError: more than `size_limit` of its size.
        OSError, EOFError, ValueError: damaged.
    """
    limit, pieces = size_limit(path.stat().st_size), []
    with PACKED[ending](path) as file:
        for piece in _pieces(file):
            limit -= len(piece)
            if limit < 0:
                raise TooLargeError.of_ratio()
            pieces.append(piece)
    return b"".join(pieces)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    try:
        while piece := file.read(_CHUNK):
            yield piece
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa

    stream: BinaryIO = pa.input_stream(str(path), compression="zstd")
    return stream


PACKED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstd,
}
"""By the end of a file's name, in lower case: what opens it for reading."""
