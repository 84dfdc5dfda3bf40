"""JSON that anybody may have written: whatever is wrong with it is a ValueError, and its size is bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LONGEST = 1 << 26
"""Bytes of a file: an index of 100,000 tensors has 10 MB."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: a file that cannot be read.
        ValueError: larger than any of ours, not UTF-8, not JSON, or nested deeper than Python reads.
    """
    if (size := path.stat().st_size) > _LONGEST:
        raise ValueError(f"{size:,} bytes, more than {_LONGEST:,}")
    return parse_json(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """Return what JSON text says; errors as `read_json`."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
