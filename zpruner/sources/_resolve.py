"""What a source stands for here and now: a path that exists, or a commit of something on the hub."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from zpruner.errors import SourceError
from zpruner.sources._form import NAME, Kind
from zpruner.sources._hub import HubRef, hub_commit
from zpruner.sources._parse import LocalPath, parse_source

_PLAIN = re.compile(rf"({NAME}/{NAME})(?:@([A-Za-z0-9][A-Za-z0-9._-]*))?")
_FILES = (
    *(".txt", ".text", ".md", ".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".cor"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".gguf", ".safetensors", ".bin", ".pt"),
)


def resolve_source(source: str, kind: Kind = "model", root: Path = Path()) -> str:
    """Return the source with a local path taken relative to `root`, and ORG/NAME[@REVISION] pinned to its commit.

    A path that exists comes before a repository of that name. The commit that a name stands for is printed on standard
    error, so that it can be written in its place.

    Args:
        source: see `parse_source`.
        kind: of what is looked for on the hub.
        root: the project folder.

    Raises:
        InvalidSettingError: as `parse_source`.
        SourceError: nothing of that name on this machine, nor on the hub; the hub cannot be asked.
    """
    parsed = parse_source(source)
    if not isinstance(parsed, LocalPath):
        return source
    path = root / parsed.path
    if os.path.lexists(path):
        return str(path)
    found = hub_name(source)
    if found is None:
        raise SourceError(
            source,
            "no such file or folder",
            f"a path on this machine, or a {kind} on the hub as ORG/NAME",
            "Look at the spelling of the path.",
        )
    repo, revision = found
    pinned = HubRef(repo, hub_commit(repo, revision, kind))
    if pinned.revision != revision:
        print(f"{source} is now commit {pinned.revision}: {pinned} names it for good.", file=sys.stderr)
    return str(pinned)


def hub_name(source: str) -> tuple[str, str] | None:
    """Return repository and revision ("main" where there is none) of ORG/NAME[@REVISION]; None for anything else.

    A name that ends as files of models and texts do is a path, though it may not be there.
    """
    match = _PLAIN.fullmatch(source)
    if match is None or match[1].lower().endswith(_FILES):
        return None
    return match[1], match[2] or "main"
