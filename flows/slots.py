"""Device slots: how many stage instances run at the same time on this machine, whoever started them.

A slot is a file lock, which the kernel frees however its holder ends; a lease kept on a server would outlive it.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zpruner.errors import ArtifactError, InvalidSettingError
from zpruner.runtime.machine import cores, free_memory

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""The variable by which a process of each kind of accelerator is shown one device only."""
POLL_SECONDS = 0.1
_YOURS = "a folder that is yours alone"


@dataclass(frozen=True)
class Slot:
    """The right to use one device, or a share of the processor.

    Args:
        name: of the lock file.
        environment: what makes a stage use this device only.
    """

    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Slots:
    """The slots of one kind on this machine."""

    slots: tuple[Slot, ...]
    folder: Path

    @contextmanager
    def one(self) -> Iterator[Slot]:
        """Wait for any slot and hold it."""
        while True:
            for slot in self.slots:
                with _lock_file(self.folder, slot.name) as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        continue
                    yield slot
                    return
            time.sleep(POLL_SECONDS)

    @contextmanager
    def all(self) -> Iterator[Slot]:
        """Wait for every slot and hold them all: the first one is used, with no neighbour beside it."""
        with ExitStack() as locks:
            for slot in self.slots:  # always in this order, so that two that want all cannot block each other
                lock = locks.enter_context(_lock_file(self.folder, slot.name))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.slots[0]


def lock_folder() -> Path:
    """Return the folder of this user's slots: one for the machine, as devices are.

    Raises:
        ArtifactError: it cannot be made, or somebody else can write to what has its name.
    """
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"zpruner-slots-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except OSError as error:
        got, action = error.strerror or str(error), f"Set XDG_RUNTIME_DIR to {_YOURS}."
        raise ArtifactError(str(folder), got, "a folder that can be made", action) from None
    os.close(_open_private(folder))
    return folder


def _open_private(folder: Path) -> int:
    """Return a descriptor of a folder that is this user's alone, and no link: names in /tmp are anybody's to take."""
    remedy = f"Remove it, or set XDG_RUNTIME_DIR to {_YOURS}."
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise ArtifactError(str(folder), error.strerror or str(error), "a folder of your own", remedy) from None
    facts = os.fstat(opened)
    if facts.st_uid == os.getuid() and not facts.st_mode & 0o077:
        return opened
    os.close(opened)
    got = f"mode {stat.S_IMODE(facts.st_mode):o}, owner {facts.st_uid}"
    raise ArtifactError(str(folder), got, f"mode 700, owner {os.getuid()}", remedy)


@contextmanager
def _lock_file(folder: Path, name: str) -> Iterator[int]:
    """Yield a descriptor of a file to lock, which is created where it is missing and never written to."""
    within = _open_private(folder)
    try:
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=within)
    except OSError as error:
        got = error.strerror or str(error)
        raise ArtifactError(str(folder / name), got, "a lock file, or nothing", "Remove it.") from None
    finally:
        os.close(within)
    try:
        yield lock
    finally:
        os.close(lock)


def processor_slots(parallel: int, project: str) -> Slots:
    """Return `parallel` slots of a project that share the processor's cores.

    With more than one slot each gets its share of the cores as threads, unless OMP_NUM_THREADS says how many.
    """
    if parallel < 1:
        raise InvalidSettingError("parallel", str(parallel), "at least 1", "Give the number of instances at a time.")
    threads = max(1, cores() // parallel)
    fixed = "OMP_NUM_THREADS" in os.environ or parallel == 1
    environment = {} if fixed else {"OMP_NUM_THREADS": str(threads)}
    return Slots(tuple(Slot(f"cpu-{project}-{i}", environment) for i in range(parallel)), lock_folder())


def accelerator_slots(kind: str, count: int) -> Slots:
    """Return one slot per device of `kind`; a kind whose devices cannot be told apart here has one slot in all."""
    variable = VISIBLE.get(kind)
    if variable is None:
        return Slots((Slot(f"{kind}-0", {}),), lock_folder())
    shown = os.environ.get(variable, "")
    devices = [name.strip() for name in shown.split(",")] if shown else [str(i) for i in range(count)]
    return Slots(tuple(Slot(_file_name(kind, name), {variable: name}) for name in devices[:count]), lock_folder())


def _file_name(kind: str, device: str) -> str:
    """Return the name of a device's lock file; the device's own may hold a slash (`MIG-GPU-.../1/0`)."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9._-]', '_', device)}"


def fitting(peak_bytes: int) -> int:
    """Return how many instances of `peak_bytes` fit this machine's cores and its free memory; at least one."""
    return max(1, min(cores(), free_memory() // max(peak_bytes, 1)))
