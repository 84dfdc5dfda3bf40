"""What this machine has to run stage instances on: accelerators, cores, memory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

from flows.instance import Place, run
from flows.slots import Slots, accelerator_slots, fitting, processor_slots
from warm.worker import Worker, Workers
from zpruner.artifacts.costs import Cost
from zpruner.artifacts.layout import Layout
from zpruner.errors import ArtifactError

DEVICE_FILES = ("nvidia[0-9]*", "kfd", "dri/renderD*", "accel*")
"""What Linux shows below /dev where there may be an accelerator."""
UNKNOWN_BYTES = 4 << 30
"""Memory that an instance is taken to need before any has run here."""

early_worker: ContextVar[Worker | Workers | None] = ContextVar("early_worker", default=None)
"""Workers that the caller of a flow has started already."""


def early_or_new(root: Path) -> AbstractContextManager[Worker | Workers]:
    """Return the workers that are there already, which their owner closes, or new ones."""
    early = early_worker.get()
    return Workers(root) if early is None else nullcontext(early)


def machine_slots(worker: Worker | Workers, root: Path, parallel: int) -> dict[bool, Slots]:
    """Return the slots of instances that may use an accelerator (True), and of those that need none (False).

    Args:
        worker: what is to look for accelerators.
        root: the project folder.
        parallel: how many instances share the processor; 0: as many as its cores and the free memory take.
    """
    at_a_time = parallel or fitting(peak_bytes(root))
    processor = processor_slots(at_a_time, sha256(str(root).encode()).hexdigest()[:12])
    kind, count = find_accelerators(worker.stages if isinstance(worker, Workers) else worker, root)
    return {True: accelerator_slots(kind, count) if count else processor, False: processor}


def peak_bytes(root: Path) -> int:
    """Return the most memory that an instance of this project has taken so far, as its costs say."""
    return max(map(_peak, Layout(root).costs().rglob("*.json")), default=UNKNOWN_BYTES)


def _peak(path: Path) -> int:
    try:
        return Cost.read(path, "dvc repro").peak_memory_bytes
    except ArtifactError:  # damaged, or of another version: the run that is about to start makes it anew
        return UNKNOWN_BYTES


def find_accelerators(worker: Worker, root: Path) -> tuple[str, int]:
    """Return the kind and the number of this machine's accelerators, e.g. `("cuda", 2)` or `("cpu", 0)`."""
    if not any(found for pattern in DEVICE_FILES for found in Path("/dev").glob(pattern)):
        return "cpu", 0  # no need to load a library to see that
    lines: list[str] = []
    run(Place(worker.socket, worker.environment, str(root)), ["-m", "flows._devices"], {}, lines.append)
    kind, _, count = lines[-1].partition(" ")
    return kind, int(count)
