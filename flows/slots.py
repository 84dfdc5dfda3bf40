"""Device slots: how many stage instances run at the same time on this machine, whoever started them.

A slot is a file lock, which the kernel frees however its holder ends; a lease kept on a server would outlive it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from zpruner.errors import InvalidSettingError

VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "xpu": "ZE_AFFINITY_MASK"}
"""The variable by which a process of each kind of accelerator is shown one device only."""
POLL_SECONDS = 0.1


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
                with (self.folder / slot.name).open("w") as lock:
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
                lock = locks.enter_context((self.folder / slot.name).open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield self.slots[0]


def lock_folder() -> Path:
    """Return the folder of this user's slots: one for the machine, as devices are."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"zpruner-slots-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


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
    return Slots(tuple(Slot(f"{kind}-{name}", {variable: name}) for name in devices[:count]), lock_folder())


def cores() -> int:
    """Return the number of processor cores this process may use."""
    return len(os.sched_getaffinity(0))


def fitting(peak_bytes: int) -> int:
    """Return how many instances of `peak_bytes` fit this machine's cores and its free memory; at least one."""
    return max(1, min(cores(), int(psutil.virtual_memory().available // max(peak_bytes, 1))))
