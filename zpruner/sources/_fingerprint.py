"""What a local source holds: told by sizes and times first, by its bytes where those differ from before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zpruner.artifacts.result_file import Result
from zpruner.artifacts.work import digest_of, read_sealed_json, write_sealed_json
from zpruner.errors import ArtifactError, SourceError
from zpruner.sources._hash import file_sha256, folder_sha256


class Content(Result):
    """The hash of what a source holds; empty where its own name pins that, as a package's version does."""

    content: str


class Fingerprints:
    """Content hashes of files and folders, remembered with the sizes and times of what they were taken from.

    Args:
        memory: a file that is read and written; without it, or damaged, every hash is taken anew.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        try:
            self._known: dict[str, Any] = read_sealed_json(memory, "hashes of local sources")
        except ArtifactError:
            self._known = {}

    def of(self, where: str, path: Path) -> str:
        """Return the SHA-256 of a file, or of a folder as `folder_sha256` takes it.

        Raises:
            SourceError: nothing there, or not to be read.
        """
        key = str(path.absolute())
        try:
            state = digest_of(_state(path))
            known = self._known.get(key)
            if isinstance(known, list) and known[:1] == [state]:
                return str(known[1])
            content = folder_sha256(path) if path.is_dir() else file_sha256(path)
        except OSError as error:
            raise SourceError(
                where,
                f"{path}: {error.strerror or error}",
                "the file or folder that params.yaml names",
                "Bring it back or correct the path; `dvc checkout` restores what was fetched from it before.",
            ) from None
        self._known[key] = [state, content]
        write_sealed_json(self._memory, self._known)
        return content


def _state(path: Path) -> list[list[object]]:
    """Return name, size, times of change and inode of every file: what a replaced or rewritten file cannot keep."""
    files = [path] if not path.is_dir() else sorted(found for found in path.rglob("*") if found.is_file())
    facts = ((file, file.stat()) for file in files)
    return [[str(f.relative_to(path)), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for f, s in facts]
