"""What a checkpoint folder says of itself: its files with their checksums, what it was made from, its role."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from zpruner.artifacts.files import checksum, digest_of, read_sealed_json, refuse_link, write_sealed_json
from zpruner.errors import MEND, ArtifactError
from zpruner.model.stored import read_header

MANIFEST = "zpruner.json"
_ELSEWHERE = "Move it elsewhere: transformers reads files by their names."
SHARD_INDEX = "model.safetensors.index.json"
_NO_TOKENIZER = ("config.json", "generation_config.json", SHARD_INDEX, "README.md", "LICENSE")


class FileFacts(BaseModel):
    """Size in bytes and checksum of a file; of a safetensors file also the checksum of its header."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    checksum: str
    bytes: int
    header: str | None = None


class _Manifest(BaseModel):
    """What every manifest has; the stages add their own strings."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    hash: str
    dtype: str = ""
    files: dict[str, FileFacts]
    converted: list[list[list[str]]] = []


def write_manifest(folder: Path, model: str, **facts: Any) -> None:
    """Write the manifest of a finished checkpoint folder: file sizes, checksums and a content hash.

    Args:
        folder: holds safetensors, config and tokenizer files.
        model: the source that the model came from.
        facts: further JSON values, such as the role, or the method and pattern of a pruned model.
    """
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name != MANIFEST)
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / name
        files[name] = {"checksum": checksum(path), "bytes": path.stat().st_size}
        if name.endswith(".safetensors"):
            files[name]["header"] = _header_checksum(path)
    checksums = {name: found["checksum"] for name, found in files.items()}
    write_sealed_json(folder / MANIFEST, {"model": model, "hash": _content_hash(checksums), "files": files, **facts})


def read_manifest(folder: Path) -> tuple[dict[str, Any], dict[str, FileFacts]]:
    """Return a manifest and its files, after checking the seal, the form, which files there are, and every small one.

    Of a safetensors file size and header are checked: its values are checked when they are read.

    Raises:
        ArtifactError: names the file that is missing, altered, or not of the checkpoint.
    """
    path = folder / MANIFEST
    manifest = read_sealed_json(path, "a checkpoint's manifest")
    try:
        files = _Manifest.model_validate(manifest).files
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ArtifactError(str(path), f"no manifest ({where})", "a checkpoint's manifest", MEND) from None
    there = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")} - {MANIFEST}
    if missing := files.keys() - there:  # so that no name leads out of the folder
        raise ArtifactError(str(folder / min(missing)), "no file", "one that the manifest lists", MEND)
    if others := there - files.keys():  # transformers would read some, by their names
        raise ArtifactError(str(folder / min(others)), "a file that the manifest does not list", "none", _ELSEWHERE)
    for name, facts in files.items():
        _check(folder / name, facts)
    found = _content_hash({name: facts.checksum for name, facts in files.items()})
    if found != manifest["hash"]:
        raise ArtifactError(str(path), f"hash {manifest['hash']} of files of hash {found}", "the files' own", MEND)
    return manifest, files


def tokenizer_hash(files: dict[str, FileFacts]) -> str:
    """Return a digest of the files that decide how text becomes tokens."""
    return digest_of(
        {
            name: facts.checksum
            for name, facts in files.items()
            if not name.endswith(".safetensors") and name not in _NO_TOKENIZER
        }
    )


def _check(file: Path, facts: FileFacts) -> None:
    refuse_link(file)
    size = file.stat().st_size if file.is_file() else None
    if size != facts.bytes:
        found = "no file" if size is None else f"{size} bytes"
        raise ArtifactError(str(file), found, f"{facts.bytes} bytes", MEND)
    if facts.header is None:
        got, expected = checksum(file), facts.checksum
    else:
        got, expected = _header_checksum(file), facts.header
    if got != expected:
        raise ArtifactError(str(file), f"checksum {got}", f"checksum {expected}", MEND)


def _header_checksum(file: Path) -> str:
    return str(xxhash.xxh3_128_hexdigest(read_header(file)))


def _content_hash(checksums: dict[str, str]) -> str:
    return digest_of({n: c for n, c in checksums.items() if n.endswith(".safetensors") or n == "config.json"})
