"""Token windows on disk: one row per window."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zpruner.artifacts.arrow import read_file, write_file
from zpruner.artifacts.files import digest_of
from zpruner.errors import MEND, ArtifactError
from zpruner.text.windows import windows_hash


@dataclass(frozen=True)
class WindowsOrigin:
    """What windows are for and what they were made with.

    Attributes:
        role: `calibration`, `evaluation` or `search`.
        settings: what decides the windows, as canonical JSON.
        model_hash: of the checkpoint whose tokenizer made them.
        tokenizer_hash: of that tokenizer's files.
    """

    role: str
    settings: str
    model_hash: str
    tokenizer_hash: str


def write_windows(
    path: Path,
    windows: Tensor,
    source: str,
    origin: WindowsOrigin,
    bos: str = "auto",
    begin: tuple[int, ...] = (),
    sources: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write windows, int32 (windows, seqlen), with their content hash and what they come from.

    Args:
        path: of the file.
        windows: the ids.
        source: of the text.
        origin: what they are for and made with.
        bos: the rule for what windows begin with (see `Bos`).
        begin: the tokens that every window begins with by that rule.
        sources: of several, what is known of each, as JSON values.
    """
    facts = {"windows_hash": windows_hash(windows), "source": source, "bos": bos, "begin": json.dumps(begin)}
    facts |= asdict(origin) | ({"sources": json.dumps(sources)} if sources else {})
    write_file(path, {"input_ids": windows}, "tokens", {**facts, "facts_hash": digest_of(facts)})


def read_begin(path: Path) -> tuple[int, ...]:
    """Return the tokens that every window of a file begins with by its rule.

    Raises:
        ArtifactError: as `read_windows`.
    """
    try:
        return tuple(int(one) for one in json.loads(_read(path)[1]["begin"]))
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(str(path), "no word of what its windows begin with", "one", MEND) from None


def read_sources(path: Path) -> list[dict[str, Any]]:
    """Return what a file says of each of several sources; empty where its windows come from one.

    Raises:
        ArtifactError: as `read_windows`.
    """
    found: list[dict[str, Any]] = json.loads(_read(path)[1].get("sources", "[]"))
    return found


def read_windows(path: Path, expected: WindowsOrigin | None = None) -> tuple[Tensor, str]:
    """Return windows, int32 (windows, seqlen), and their content hash.

    Args:
        path: of the file.
        expected: what they must be for and made with; None: anything.

    Raises:
        ArtifactError: missing, truncated or altered; for something else, or made with something else.
    """
    windows, facts = _read(path)
    for key, value in asdict(expected).items() if expected else ():
        if facts.get(key) != value:
            got = f"{key} {facts.get(key)!r}"
            raise ArtifactError(str(path), got, f"{value!r}", f"It belongs elsewhere. {MEND}")
    return windows, str(facts["windows_hash"])


def _read(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Return the windows and what is said of them, both as they were written."""
    columns, facts = read_file(path, "tokens")
    windows = columns.get("input_ids")
    if windows is None or windows.ndim != 2 or windows.dtype != torch.int32:
        raise ArtifactError(str(path), f"columns {sorted(columns)}", "int32 lists `input_ids`", MEND)
    found = windows_hash(windows)
    if found != facts.get("windows_hash"):
        raise ArtifactError(str(path), f"windows of hash {found}", f"{facts.get('windows_hash')}", MEND)
    sealed = {key: value for key, value in facts.items() if key not in ("facts_hash", "format", "kind", "library")}
    if facts.get("facts_hash") != digest_of(sealed):
        raise ArtifactError(str(path), "an altered origin", "that of the windows", MEND)
    return windows, facts
