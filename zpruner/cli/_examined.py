"""What is damaged in a project: artifacts by their own checksums, objects of DVC's cache by their names."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zpruner.errors import ArtifactError
from zpruner.runtime.system_errors import system_errors_named

_LEFT_OUT = ("report", "search/report", "search/best.json", "sources")
"""What people read, which no stage does, and links to the sources of the user's: only DVC has checksums of them."""
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Damage:
    """An artifact that no stage would read.

    Attributes:
        artifact: the folder or file that has to be made again.
        file: the damaged file, where it is known and there.
        reason: a reader's sentence.
    """

    artifact: Path
    file: Path | None
    reason: str


def damaged_artifacts(data: Path, folder: Path | None = None) -> Iterator[Damage]:
    """Yield every artifact below a project's `data` that its reader refuses; hidden folders are left out."""
    from zpruner.artifacts.store import INDEX
    from zpruner.checkpoint import MANIFEST

    folder = folder or data
    names = {path.name for path in folder.iterdir()}
    if MANIFEST in names or INDEX in names:
        yield from _refused(folder, _read_checkpoint if MANIFEST in names else _read_folder)
        return
    if any(name.endswith((".arrow", ".safetensors")) for name in names - {"tokens.arrow"}):
        yield Damage(folder, None, f"{folder}: got no {INDEX} or {MANIFEST} beside its files, expected one.")
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.relative_to(data).as_posix() in _LEFT_OUT:
            continue
        if path.is_dir() and path.is_symlink():  # nothing of ours: what it leads to is not looked at, let alone deleted
            continue
        if path.is_dir():
            yield from damaged_artifacts(data, path)
        elif path.suffix in _READERS:
            yield from _refused(path, _READERS[path.suffix])


def cache_of(root: Path) -> Path | None:
    """Return the folder of DVC's cached objects, or None where the project has none.

    Raises:
        ArtifactError: DVC cannot say where.
    """
    if not (root / ".dvc").is_dir():
        return None
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        got = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ArtifactError(str(root / ".dvc"), got, "the folder of DVC's cache", "Run `dvc cache dir`.")
    return root / done.stdout.strip() / "files" / "md5"


def objects(cache: Path) -> list[Path]:
    """Return all objects of a cache."""
    return sorted(path for path in cache.glob("[0-9a-f][0-9a-f]/*") if path.is_file())


def is_whole(cached: Path) -> bool:
    """Return whether an object of the cache is what its name says, the MD5 of its content."""
    return md5(cached) == cached.parent.name + cached.name.removesuffix(".dir")


def object_of(cache: Path, file: Path) -> Path:
    """Return where the cache keeps what a file holds."""
    digest = md5(file)
    return cache / digest[:2] / digest[2:]


def md5(path: Path) -> str:
    """Return the MD5 of a file, by which DVC names its objects."""
    digest = hashlib.md5(usedforsecurity=False)
    with system_errors_named(path), path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _refused(path: Path, read: Callable[[Path], None]) -> Iterator[Damage]:
    try:
        read(path)
    except ArtifactError as error:
        named = Path(error.where)
        yield Damage(path, named if named.is_file() else None, f"{error.where}: got {error.got}.")


def _read_checkpoint(folder: Path) -> None:
    from zpruner.checkpoint import Checkpoint

    Checkpoint(folder).verify_all()


def _read_folder(folder: Path) -> None:
    from zpruner.artifacts.files import read_sealed_json
    from zpruner.artifacts.store import INDEX, ArtifactReader

    reader = ArtifactReader(folder, str(read_sealed_json(folder / INDEX, "an index").get("kind")))
    for name in reader.files:
        reader.read(name)


def _read_json(path: Path) -> None:
    from zpruner.artifacts.files import read_sealed_json

    read_sealed_json(path, "a sealed file")


def _read_windows(path: Path) -> None:
    from zpruner.text import read_windows

    read_windows(path)


def _read_log(path: Path) -> None:
    from zpruner.search import read_finished_log

    read_finished_log(path)


_READERS = {".json": _read_json, ".arrow": _read_windows, ".jsonl": _read_log}
