"""Append-only files of JSON lines, each sealed together with all before it.

A line that was altered, moved, inserted or cut short breaks the chain there: it and what follows count as torn, as if
the process that wrote them had died before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

_SEAL = "seal"


def seal_line(record: Mapping[str, Any], before: str) -> tuple[bytes, str]:
    """Return a record as a line that ends in a newline, and its seal.

    Args:
        record: JSON values.
        before: the seal of the line before it; of the first line, what the file belongs to.
    """
    text = json.dumps(record)
    seal = str(xxhash.xxh3_128_hexdigest(f"{before}\n{text}".encode()))
    return (json.dumps({**record, _SEAL: seal}) + "\n").encode(), seal


def read_lines(content: bytes, before: str) -> tuple[list[dict[str, Any]], int, str]:
    """Return the records of all whole lines, their length together in bytes, and the last seal.

    Args:
        content: of the file.
        before: as the first line was given.
    """
    records: list[dict[str, Any]] = []
    length = 0
    for line in content.splitlines(keepends=True):
        record = _record(line)
        if record is None:
            break
        seal = record.pop(_SEAL, None)
        expected, found = seal_line(record, before)
        if seal != found or len(expected) != len(line):
            break
        records.append(record)
        length, before = length + len(line), found
    return records, length, before


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):  # not UTF-8, or not JSON
        return None
    return record if isinstance(record, dict) else None
