"""The stage graph, read from DVC: this package holds no second copy of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage import PipelineStage

from warm.mend import UNREADABLE, forget_dead, mend_locks
from zpruner.errors import UnknownNameError, did_you_mean

T = TypeVar("T")

LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Instance:
    """One stage instance of dvc.yaml, or of a DVC file in a folder of the project.

    Args:
        name: as DVC addresses it, e.g. `mask@wanda-s24`, or `search/dvc.yaml:text`.
        command: what DVC runs.
        needs: names of the instances whose outputs it reads directly.
        accelerator: whether `meta: {gpu: ...}` asks for an accelerator (True), needs none (False) or says nothing.
        outputs: paths that it writes, relative to the project folder.
        metrics: those of `outputs` that are DVC metrics.
    """

    name: str
    command: str
    needs: frozenset[str]
    accelerator: bool | None = None
    outputs: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The stage, e.g. `mask`."""
        return self.name.partition("@")[0]

    @property
    def file(self) -> str:
        """The DVC file that defines it."""
        return self.name.rpartition(":")[0] or PROJECT_FILE

    @property
    def labels(self) -> dict[str, str]:
        """The options of the command, e.g. `{"method": "wanda", "sparsity": "s24"}`."""
        words = shlex.split(self.command)
        pairs = pairwise(words)
        return {a[2:]: b for a, b in pairs if a.startswith("--") and not b.startswith("--")}

    @property
    def tags(self) -> list[str]:
        """What to find its runs by: `stage:mask`, `method:wanda`, `sparsity:s24`."""
        return [f"stage:{self.stage}", *(f"{key}:{value}" for key, value in self.labels.items())]


class Graph(Mapping[str, Instance]):
    """Stage instances by name, in an order in which they can run.

    Args:
        instances: every instance that another one needs must be among them.
    """

    def __init__(self, instances: Iterable[Instance]) -> None:
        by_name = {instance.name: instance for instance in instances}
        order = TopologicalSorter({name: sorted(one.needs) for name, one in by_name.items()}).static_order()
        self._instances = {name: by_name[name] for name in order}

    def __getitem__(self, name: str) -> Instance:
        return self._instances[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._instances)

    def __len__(self) -> int:
        return len(self._instances)

    def resolve(self, targets: Iterable[str]) -> list[str]:
        """Return the names of the instances that `targets` name; `mask` stands for every `mask@...`.

        A DVC file stands for all that it defines, as for `dvc repro`.

        Raises:
            UnknownNameError: a target that names nothing.
        """
        found: dict[str, None] = {}
        for target in targets:
            names = [name for name in self if target in (name, self[name].stage, self[name].file)]
            if not names:
                known = {*self, *(one.stage for one in self.values()), *(one.file for one in self.values())}
                raise UnknownNameError("dvc.yaml", f"target {target!r}", "a stage", did_you_mean(target, known))
            found |= dict.fromkeys(names)
        return list(found)

    def part(self, targets: Iterable[str] | None) -> Graph:
        """Return what `dvc repro TARGETS` looks at: the targets with all that they need.

        Without targets that is what dvc.yaml defines: stages of other DVC files, such as the search, are left out.

        Raises:
            UnknownNameError: a target that names nothing.
        """
        return self.only(self.above(self.resolve(targets or [PROJECT_FILE])))

    def above(self, names: Iterable[str]) -> set[str]:
        """Return `names` and everything that they need, directly or not."""
        reached: set[str] = set()
        todo = list(names)
        while todo:
            name = todo.pop()
            if name not in reached:
                reached.add(name)
                todo += self[name].needs
        return reached

    def below(self, names: Iterable[str]) -> set[str]:
        """Return `names` and everything that needs them, directly or not."""
        reached = set(names)
        for name, instance in self.items():  # what an instance needs comes before it
            if instance.needs & reached:
                reached.add(name)
        return reached

    def only(self, names: Iterable[str]) -> Graph:
        """Return the part of the graph with these instances; needs outside it are dropped."""
        kept = set(names)
        return Graph(replace(one, needs=one.needs & kept) for one in self.values() if one.name in kept)


def read_graph(root: Path) -> Graph:
    """Return the graph of the DVC project at `root`, whose dvc.lock is mended if DVC was killed while writing it.

    Raises:
        dvc.exceptions.DvcException: no DVC project, or a dvc.yaml that DVC refuses.
    """
    return _read(root, _graph)


def read_stale(root: Path, graph: Graph) -> set[str]:
    """Return the instances that DVC would look at again: those whose files or settings changed, and all below them.

    An instance below a changed one may turn out unchanged once that has run; DVC decides that when it gets there.
    """
    names = _read(root, lambda repo: {one.addressing: _name(one) for one in _runnable(repo.index.graph.nodes)})
    with Repo(str(root)) as repo:
        forget_dead(repo)
        changed = _status(repo)
    return graph.below(names[address] for address in changed if names.get(address) in graph)


def _read(root: Path, read: Callable[[Repo], T]) -> T:
    """Read something of a DVC project; where its dvc.lock is cut off, wait for who is writing it or mend it."""
    try:
        with Repo(str(root)) as repo:
            return read(repo)
    except UNREADABLE:
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            mend_locks(repo)
            return read(repo)


def _status(repo: Any) -> dict[str, Any]:
    """Return `repo.status()`, waiting for a lock that another process may hold for a while."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return dict(repo.status())
        except LockError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _graph(repo: Any) -> Graph:
    edges = repo.index.graph
    stages = _runnable(edges.nodes)
    for stage in stages:
        if isinstance(stage.cmd, list):
            raise DvcException(f"{stage.addressing}: a list of commands; write one command per stage.")
    return Graph(
        Instance(
            name=_name(stage),
            command=stage.cmd or "",
            needs=frozenset(_name(other) for other in _runnable(edges.successors(stage))),
            accelerator=(stage.meta or {}).get("gpu"),
            outputs=tuple(out.def_path for out in stage.outs),
            metrics=tuple(out.def_path for out in stage.outs if out.metric),
        )
        for stage in stages
    )


def _runnable(stages: Iterable[Any]) -> list[Any]:
    """Leave out data that was added by hand (`dvc add`): there is nothing to run."""
    return [stage for stage in stages if isinstance(stage, PipelineStage)]


def _name(stage: Any) -> str:
    """Return a stage's address as seen from the project folder (`addressing` is as seen from the current one)."""
    return str(stage.name) if stage.path_in_repo == PROJECT_FILE else f"{stage.path_in_repo}:{stage.name}"
