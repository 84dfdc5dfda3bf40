"""Token windows on disk: one row per window."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from zpruner.artifacts.store import read_file, write_file
from zpruner.errors import ArtifactError
from zpruner.text.windows import windows_hash


def write_windows(path: Path, windows: Tensor, source: str, bos: str = "auto", begin: tuple[int, ...] = ()) -> None:
    """Write windows, int32 (windows, seqlen), with their content hash and where the text came from.

    Args:
        path: of the file.
        windows: the ids.
        source: of the text.
        bos: the rule for what windows begin with (see `Bos`).
        begin: the tokens that every window begins with by that rule.
    """
    facts = {"windows_hash": windows_hash(windows), "source": source, "bos": bos, "begin": json.dumps(begin)}
    write_file(path, {"input_ids": windows}, "tokens", facts)


def read_begin(path: Path) -> tuple[int, ...]:
    """Return the tokens that every window of a file begins with by its rule.

    Raises:
        ArtifactError: as `read_windows`.
    """
    _, facts = read_file(path, "tokens")
    try:
        return tuple(int(one) for one in json.loads(facts["begin"]))
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            str(path), "no word of what its windows begin with", "one", "Delete it and run `dvc repro`."
        ) from None


def read_windows(path: Path) -> tuple[Tensor, str]:
    """Return windows, int32 (windows, seqlen), and their content hash.

    Raises:
        ArtifactError: missing, truncated or altered.
    """
    columns, facts = read_file(path, "tokens")
    windows = columns.get("input_ids")
    if windows is None or windows.ndim != 2 or windows.dtype != torch.int32:
        raise ArtifactError(
            str(path), f"columns {sorted(columns)}", "int32 lists `input_ids`", "Run `dvc repro fetch`."
        )
    found = windows_hash(windows)
    if found != facts.get("windows_hash"):
        raise ArtifactError(
            str(path), f"windows of hash {found}", f"{facts.get('windows_hash')}", "Delete it and run `dvc repro`."
        )
    return windows, found
