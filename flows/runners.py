"""Prefect's task runners, and what a stage instance needs on a machine of a cluster.

`threads`                    of the flow's process
`dask`, `ray`                processes on this machine
`dask=ADDRESS`, `ray=...`    workers of a running cluster: each in a clone of its own, which its variable ZPRUNER_ROOT
                             names; the clones meet in the DVC remote and its run cache
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import share
from flows.instance import SMALLER, Outcome, OutOfMemoryStageError, Place, StageError, reproduce
from flows.machine import machine_slots
from flows.mend import mend
from flows.slots import Slots
from flows.worker import Workers
from zpruner.errors import InvalidSettingError

ROOT = "ZPRUNER_ROOT"
SETTINGS = ("dvc.yaml", "params.yaml")
Log = Callable[[str], None]


def task_runner(runner: str, instances: int) -> TaskRunner[Any]:
    """Return Prefect's task runner of that name; slots, not threads, limit what runs at a time.

    Raises:
        InvalidSettingError: an unknown name, or a runner whose package is not installed.
    """
    name, _, address = runner.partition("=")
    if runner == "threads":
        return ThreadPoolTaskRunner(max_workers=instances + 1)
    if name not in ("dask", "ray"):
        raise InvalidSettingError(
            "runner", runner, "threads, dask, ray, dask=ADDRESS or ray=ADDRESS", "Correct the name."
        )
    module, package = f"prefect_{name}", f"prefect-{name}"
    if find_spec(module) is None:
        raise InvalidSettingError("runner", runner, f"{package} to be installed", f"Run `pip install {package}`.")
    found = import_module(module)
    made: TaskRunner[Any] = (found.DaskTaskRunner if name == "dask" else found.RayTaskRunner)(address=address or None)
    return made


def has_clones(runner: str) -> bool:
    """Return whether the instances run in clones of their own."""
    return "=" in runner


@dataclass(frozen=True)
class Here:
    """A stage instance in the flow's own project folder.

    Args:
        place: where that is.
        slots: of this machine.
        pull: fetch what the default remote has rather than computing it.
    """

    place: Place
    slots: Slots
    pull: bool

    def reproduce(self, name: str, log: Log, *, force: bool) -> Outcome:
        """Let DVC bring the instance up to date, on a device slot of its own.

        Where memory runs out it is tried once more, with nothing beside it and in smaller batches.

        Raises:
            StageError: it failed; the class says whether trying again makes sense.
        """
        try:
            with self.slots.one() as slot:
                return reproduce(self.place, name, slot.environment, log, pull=self.pull, force=force)
        except OutOfMemoryStageError as error:
            log(f"{error}. Once more, with nothing beside it and in smaller batches.")
        with self.slots.all() as slot:
            return reproduce(self.place, name, {**slot.environment, **SMALLER}, log, pull=self.pull, force=force)


def settings_digest(root: Path) -> str:
    """Return a digest of what clones have to agree on."""
    return sha256(b"\0".join((root / name).read_bytes() for name in SETTINGS)).hexdigest()


@dataclass(frozen=True)
class InClone:
    """A stage instance in the clone of whichever machine of a cluster takes it.

    Args:
        needs: the instances whose outputs it reads; the remote has them.
        settings: `settings_digest` of the clone that the flow runs in.
        parallel: see `machine_slots`.
    """

    needs: tuple[str, ...]
    settings: str
    parallel: int

    def reproduce(self, name: str, log: Log, *, force: bool) -> Outcome:
        """Fetch what the instance needs, let DVC bring it up to date, push what came out."""
        root = _clone(self.settings)
        mend(root)
        share.check_remote(root)
        with Workers(root) as workers:  # whose libraries are imported while the next lines fetch
            share.fetch(root, log, name)
            if self.needs:
                share.dvc(root, log, "repro", "--pull", "--allow-missing", *self.needs)
            place = Place(workers.socket, workers.environment, str(root))
            slots = machine_slots(workers, root, self.parallel)[True]
            outcome = Here(place, slots, pull=True).reproduce(name, log, force=force)
        share.push(root, log, name)
        return outcome


def _clone(settings: str) -> Path:
    if ROOT not in os.environ:
        raise StageError(f"{ROOT} is not set: start this machine's worker with {ROOT} naming its clone of the project")
    root = Path(os.environ[ROOT]).resolve()
    if settings_digest(root) != settings:
        raise StageError(f"{root} has another {' or '.join(SETTINGS)} than the flow: bring it to the same commit")
    return root


def gather(root: Path, finished: list[str], log: Log) -> None:
    """Bring what the clones made into this one."""
    share.fetch(root, log, *finished)
    share.dvc(root, log, "repro", "--pull", "--allow-missing", *finished)
