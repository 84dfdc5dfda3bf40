"""The flow `pipeline`: one Prefect task per stage instance of dvc.yaml, each run by DVC.

python -m flows.pipeline [--parallel N] [--share] [TARGET ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import ContextVar
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, TaskRunContext
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import share as sharing
from flows._api import api
from flows.graph import Graph, read_graph, read_stale
from flows.instance import Outcome, OutOfMemoryStageError, PassingStageError, Place, find_accelerators, reproduce
from flows.publish import model_name, publish, run_name, run_tags
from flows.slots import Slots, accelerator_slots, processor_slots
from flows.worker import Worker, Workers
from zpruner.errors import InvalidSettingError, ZprunerError

Runner = Literal["threads", "dask", "ray"]
RETRY_SECONDS = [2.0, 10.0, 60.0]
early_worker: ContextVar[Worker | Workers | None] = ContextVar("early_worker", default=None)
"""Workers that the caller of the flow has started already."""


def _may_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), PassingStageError)


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    task_run_name="{name}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=_may_pass,
)
def instance(name: str, labels: list[str], place: Place, slots: Slots, pull: bool, force: bool) -> State[Any]:
    """Let DVC bring one stage instance up to date, on a device slot of its own."""
    logger = get_run_logger()
    _tag_task(labels)
    try:
        with slots.one() as slot:
            outcome = reproduce(place, name, slot.environment, logger.info, pull=pull, force=force)
    except OutOfMemoryStageError as error:
        logger.warning("%s. Once more, with nothing beside it.", error)
        with slots.all() as slot:
            outcome = reproduce(place, name, slot.environment, logger.info, pull=pull, force=force)
    return Completed(name="Completed" if outcome is Outcome.ran else "Cached", message=outcome, data=outcome.value)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
def up_to_date(name: str, labels: list[str]) -> State[Any]:
    """Stand for a stage instance that needs no look."""
    _tag_task(labels)
    return Completed(name="Cached", message="up to date", data=Outcome.unchanged.value)


def _flow_run_name() -> str:
    parameters = flow_run.parameters
    root = Path(parameters.get("root") or ".")
    return run_name(root, _part(read_graph(root), parameters.get("targets")))


@flow(name="pipeline", flow_run_name=_flow_run_name, persist_result=False)
def pipeline(
    root: str = ".",
    targets: list[str] | None = None,
    parallel: int = 1,
    share: bool = False,
    force: list[str] | None = None,
    runner: Runner = "threads",
) -> dict[str, int]:
    """Bring the pipeline up to date, like `dvc repro`.

    Args:
        root: the project folder.
        targets: stages or stage instances, with all that they need; everything if none is named.
        parallel: how many instances run at a time where there is no accelerator; with accelerators, one on each.
        share: pull from the default remote before, and push to it after, whatever happens in between.
        force: stages or instances to run even if nothing changed.
        runner: Prefect's task runner.

    Returns:
        How many instances ran, were restored and were unchanged.
    """
    folder = Path(root).resolve()
    logger = get_run_logger()
    with sharing.shared(folder, logger.info) if share else nullcontext():
        graph = _part(read_graph(folder), targets)
        _tag(run_tags(folder, graph))
        forced = set(graph.resolve(force or []))
        stale = (read_stale(folder, graph) & set(graph)) | graph.below(forced)
        logger.info("%d of %d stage instances to look at", len(stale), len(graph))
        with _worker(folder) if stale else nullcontext() as worker, _task_runner(runner, len(graph)) as running:
            states = _run_all(running, graph, stale, forced, worker, folder, parallel=parallel, pull=share)
        publish(folder, graph)
    return _summary(states)


def _run_all(
    running: TaskRunner[Any],
    graph: Graph,
    stale: set[str],
    forced: set[str],
    worker: Worker | Workers | None,
    root: Path,
    *,
    parallel: int,
    pull: bool,
) -> dict[str, State[Any]]:
    """Submit every instance, each to start once what it needs is done; return how each ended."""
    futures: dict[str, Any] = {}
    model = f"model:{model_name(root)}"
    place = None if worker is None else Place(worker.socket, worker.environment, str(root))
    slots = {} if worker is None else _slots(worker, root, parallel)
    for name, one in graph.items():
        needs = [futures[above] for above in one.needs]
        if name in stale:
            parameters: dict[str, Any] = {"name": name, "labels": [model, *one.tags], "place": place, "pull": pull}
            parameters |= {"slots": slots[one.accelerator is not False], "force": name in forced}
            futures[name] = running.submit(instance, parameters, wait_for=needs)
        else:
            futures[name] = running.submit(up_to_date, {"name": name, "labels": [model, *one.tags]}, wait_for=needs)
    try:
        for future in futures.values():
            future.wait()
    except BaseException:  # cancelled: stop what is running, which Prefect would wait for
        if worker is not None:
            worker.close()
        raise
    return {name: future.state for name, future in futures.items()}


def _summary(states: Mapping[str, State[Any]]) -> dict[str, int]:
    """Count outcomes; raises RuntimeError, with every reason, if an instance failed."""
    failed = [name for name, state in states.items() if not state.is_completed()]
    if failed:
        reasons = [str(states[name].message) for name in failed if states[name].is_failed()]
        raise RuntimeError(f"{len(failed)} of {len(states)} stage instances not done. {' '.join(reasons)}")
    outcomes = [state.result() for state in states.values()]
    return {str(outcome): outcomes.count(outcome.value) for outcome in Outcome}


def _part(graph: Graph, targets: list[str] | None) -> Graph:
    return graph.only(graph.above(graph.resolve(targets))) if targets else graph


def _tag(more: set[str]) -> None:
    """Add tags to the current flow run."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, *more}))


def _tag_task(labels: list[str]) -> None:
    """Tag the current task run: tags given beforehand make Prefect look for limits by their names, which takes long."""
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.tags = labels


def _worker(root: Path) -> AbstractContextManager[Worker | Workers]:
    early = early_worker.get()
    return Workers(root) if early is None else nullcontext(early)


def _slots(worker: Worker | Workers, root: Path, parallel: int) -> dict[bool, Slots]:
    """Return the slots of instances that may use an accelerator (True), and of those that need none (False)."""
    processor = processor_slots(parallel, sha256(str(root).encode()).hexdigest()[:12])
    kind, count = find_accelerators(worker.stages if isinstance(worker, Workers) else worker, root)
    return {True: accelerator_slots(kind, count) if count else processor, False: processor}


def _task_runner(runner: Runner, instances: int) -> TaskRunner[Any]:
    """Return Prefect's task runner of that name; slots, not threads, limit what runs at a time."""
    if runner == "threads":
        return ThreadPoolTaskRunner(max_workers=instances + 1)
    module, package = f"prefect_{runner}", f"prefect-{runner}"
    if find_spec(module) is None:
        raise InvalidSettingError("runner", runner, f"{package} to be installed", f"Run `pip install {package}`.")
    found = import_module(module)
    return found.DaskTaskRunner() if runner == "dask" else found.RayTaskRunner()


def main(arguments: list[str]) -> int:
    """Run the flow once; returns 0 if everything is up to date afterwards."""
    parser = argparse.ArgumentParser("python -m flows.pipeline", description="Bring the pipeline up to date.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stage or instance; default: everything")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="instances at a time on the processor")
    parser.add_argument("--share", action="store_true", help="pull from the default remote before, push after")
    parser.add_argument("--force", action="append", metavar="TARGET", help="run it even if nothing changed")
    parser.add_argument("--runner", choices=["threads", "dask", "ray"], default="threads", help="Prefect task runner")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    with ExitStack() as stack:
        try:
            server = stack.enter_context(api())  # comes up while the next lines work
            if options.share or read_stale(root, _part(read_graph(root), options.targets)):
                early_worker.set(stack.enter_context(Workers(root)))
            if server is not None:
                server.wait()
            counts = pipeline(str(root), **vars(options))
        except ZprunerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except RuntimeError:  # the failed instances are in the log
            return 1
        except KeyboardInterrupt:
            print("Interrupted. Finished instances are kept: run again to go on.", file=sys.stderr)
            return 130
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
