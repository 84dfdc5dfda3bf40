"""The compiled kernels: compiled once into a folder of the user's own."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).with_name("c")
SOURCE = FOLDER / "sparse.c"
"""Includes the other files of its folder: one translation unit."""
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-Wno-unknown-pragmas")
OPENMP = "-fopenmp"
_SECONDS = 300


class BuildError(Exception):
    """No library, with the reason in a few words."""


def library_file() -> Path:
    """Return the shared library of `sparse.c`, compiled if it is not there yet.

    It is compiled at first use into `cache_folder()`, under a name that says what it was made from. A library that
    somebody else could have written is never loaded.

    Raises:
        BuildError: no compiler, a compiler that fails, or a cache folder that others can write to.
    """
    if sys.byteorder != "little":
        raise BuildError("this machine stores numbers big-endian")
    compiler = find_compiler()
    folder = private_folder(cache_folder())
    file = folder / f"sparse-{_key(compiler)}.so"
    if not _is_ours(file):
        _compile(compiler, file)
    return file


def find_compiler() -> tuple[str, ...]:
    """Return the command of a C compiler: `CC`, cc, gcc, clang, or that of the package ziglang.

    Raises:
        BuildError: there is none.
    """
    if named := os.environ.get("CC", "").split():
        if shutil.which(named[0]) is None:
            raise BuildError(f"CC names '{named[0]}', which is not there")
        return tuple(named)
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return (found,)
    if importlib.util.find_spec("ziglang") is not None:
        return (sys.executable, "-m", "ziglang", "cc")
    raise BuildError("no C compiler (install gcc or clang, or `pip install ziglang`)")


def cache_folder() -> Path:
    """Return where compiled kernels are kept: below `ZPRUNER_CACHE`, else the user's cache folder."""
    if named := os.environ.get("ZPRUNER_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zpruner"


def private_folder(folder: Path) -> Path:
    """Return `folder`, made if it was not there, after checking that only its owner, this user, can write to it.

    Raises:
        BuildError: it is another user's, others can write to it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise BuildError(f"{folder}: {error.strerror}") from None
    if found.st_uid != os.getuid():
        raise BuildError(f"{folder} belongs to another user (set ZPRUNER_CACHE to a folder of yours)")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"others can write to {folder} (`chmod go-w {folder}`)")
    return folder


def compile_library(compiler: tuple[str, ...], output: Path, *flags: str) -> None:
    """Compile `sparse.c` into `output`.

    Raises:
        BuildError: the compiler fails; with its first message.
    """
    command = [*compiler, *FLAGS, *flags, str(SOURCE), "-o", str(output)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"{' '.join(compiler)} failed: {lines[0] if lines else f'status {done.returncode}'}")


def _compile(compiler: tuple[str, ...], file: Path) -> None:
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".build-") as folder:
        made = Path(folder) / file.name
        try:
            compile_library(compiler, made, OPENMP)
        except BuildError:  # clang on macOS has no OpenMP
            compile_library(compiler, made)
        made.chmod(0o500)
        made.replace(file)


def _key(compiler: tuple[str, ...]) -> str:
    texts = (file.read_bytes() for file in sorted(FOLDER.glob("*.[ch]")))
    facts = (*texts, repr((compiler, FLAGS, OPENMP, platform.machine(), sys.platform)).encode())
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:24]


def _is_ours(file: Path) -> bool:
    """Whether it is a plain file that this user owns and nobody else can change."""
    try:
        found = file.lstat()
    except FileNotFoundError:
        return False
    mine = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(found.st_mode) and mine
