"""The flow `pipeline`: one Prefect task per stage instance of dvc.yaml, each run by DVC.

python -m flows.pipeline [--parallel N] [--share] [TARGET ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from dvc.dvcfile import PROJECT_FILE
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Cancelled
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows import share as sharing
from flows._api import api
from flows._ending import NotDoneError, as_state, exit_status
from flows.cancel import watching
from flows.graph import Graph, read_graph, read_stale
from flows.instance import Outcome, Place
from flows.machine import early_or_new, early_worker, machine_slots
from flows.publish import model_name, publish, run_name, run_tags
from flows.tasks import Here, instance, up_to_date
from warm.worker import Worker, Workers
from zpruner.errors import InvalidSettingError


def _flow_run_name() -> str:
    parameters = flow_run.parameters
    root = Path(parameters.get("root") or ".")
    return run_name(root, read_graph(root).part(parameters.get("targets")))


@flow(name="pipeline", flow_run_name=_flow_run_name, persist_result=False)
def pipeline(
    root: str = ".",
    targets: list[str] | None = None,
    parallel: int = 1,
    share: bool = False,
    force: list[str] | None = None,
) -> dict[str, int] | State[Any]:
    """Bring the pipeline up to date, like `dvc repro`.

    Args:
        root: the project folder.
        targets: stages, stage instances or DVC files, with all that they need; what dvc.yaml defines if none is named.
        parallel: how many instances run at a time where there is no accelerator (0: as many as cores and memory
            take); with accelerators, one on each.
        share: pull what the targets need from the default remote before, and push it after, whatever happens between.
        force: stages or instances to run even if nothing changed.

    Returns:
        How many instances ran, were restored and were unchanged. (A run that is cancelled raises CancelledRun, one
        with an instance that failed NotDoneError.)
    """
    folder = Path(root).resolve()
    logger = get_run_logger()
    _check_parallel(parallel)
    graph = read_graph(folder).part(targets)
    part = list(graph) if targets else [PROJECT_FILE]
    with sharing.shared(folder, logger.info, part) if share else nullcontext():
        _tag(run_tags(folder, graph))
        forced = set(graph.resolve(force or []))
        stale = (read_stale(folder, graph) & set(graph)) | graph.below(forced)
        logger.info("%d of %d stage instances to look at", len(stale), len(graph))
        with early_or_new(folder) if stale else nullcontext() as worker, _threads(len(graph)) as running:
            where = _where(graph, worker, folder, parallel=parallel, pull=share)
            with nullcontext() if worker is None else watching(worker.close) as cancelled:
                states = _run_all(running, graph, stale, forced, where, worker, model_name(folder))
        publish(folder, graph)
    if cancelled is not None and cancelled.is_set():
        return Cancelled(message="Finished instances are kept: run again to continue.")
    failure = _failure(states)
    return _counts(states) if failure is None else as_state(failure)


def _threads(instances: int) -> TaskRunner[Any]:
    """Return threads enough for all: slots limit what runs at a time."""
    return ThreadPoolTaskRunner(max_workers=instances + 1)


def _where(graph: Graph, worker: Worker | Workers | None, root: Path, *, parallel: int, pull: bool) -> dict[str, Here]:
    """Return where each instance is to run; nowhere without a worker."""
    if worker is None:
        return {}
    place = Place(worker.socket, worker.environment, str(root))
    slots = machine_slots(worker, root, parallel)
    return {name: Here(place, slots[one.accelerator is not False], pull) for name, one in graph.items()}


def _run_all(
    running: TaskRunner[Any],
    graph: Graph,
    stale: set[str],
    forced: set[str],
    where: Mapping[str, Here],
    worker: Worker | Workers | None,
    model: str,
) -> dict[str, State[Any]]:
    """Submit every instance, each to start once what it needs is done; return how each ended."""
    futures: dict[str, Any] = {}
    for name, one in graph.items():
        needs = [futures[above] for above in one.needs]
        parameters: dict[str, Any] = {"name": name, "labels": [f"model:{model}", *one.tags]}
        if name in stale:
            parameters |= {"where": where[name], "force": name in forced}
            futures[name] = running.submit(instance, parameters, wait_for=needs)
        else:
            futures[name] = running.submit(up_to_date, parameters, wait_for=needs)
    try:
        for future in futures.values():
            future.wait()
    except BaseException:  # cancelled: stop what is running, which Prefect would wait for
        if worker is not None:
            worker.close()
        raise
    return {name: future.state for name, future in futures.items()}


def _failure(states: Mapping[str, State[Any]]) -> NotDoneError | None:
    """Return what to say if an instance failed."""
    left = [name for name, state in states.items() if not state.is_completed()]
    if not left:
        return None
    failed = [name for name in left if states[name].is_failed()]
    named = ", ".join(failed[:4]) + (f" and {len(failed) - 4} more" if len(failed) > 4 else "")
    summary = f"{len(left)} of {len(states)} stage instances not done: {named or 'none'} failed."
    return NotDoneError(summary, dict.fromkeys(str(states[name].message) for name in failed))


def _counts(states: Mapping[str, State[Any]]) -> dict[str, int]:
    outcomes = [state.result() for state in states.values()]
    return {str(outcome): outcomes.count(outcome.value) for outcome in Outcome}


def _check_parallel(parallel: int) -> None:
    if parallel < 0:
        raise InvalidSettingError("parallel", str(parallel), "0 or more", "Give the number of instances at a time.")


def _tag(more: set[str]) -> None:
    """Add tags to the current flow run."""
    context = FlowRunContext.get()
    if context is not None and context.flow_run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, tags=sorted({*context.flow_run.tags, *more}))


def main(arguments: list[str]) -> int:
    """Run the flow once; returns 0 if everything is up to date afterwards."""
    parser = argparse.ArgumentParser("python -m flows.pipeline", description="Bring the pipeline up to date.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="stage or instance; default: everything")
    parser.add_argument(
        "--parallel", type=int, default=1, metavar="N", help="instances at a time on the processor; 0: all that fit"
    )
    parser.add_argument("--share", action="store_true", help="pull from the default remote before, push after")
    parser.add_argument("--force", action="append", metavar="TARGET", help="run it even if nothing changed")
    options = parser.parse_args(arguments)
    root = Path.cwd()

    def run() -> None:
        with ExitStack() as stack:
            _check_parallel(options.parallel)
            server = stack.enter_context(api())  # comes up while the next lines work
            graph = read_graph(root).part(options.targets)
            busy = options.share or options.force or bool(read_stale(root, graph) & set(graph))
            if busy:
                early_worker.set(stack.enter_context(Workers(root)))
            if server is not None and busy:
                server.wait()
            if server is not None and not busy:  # nothing would happen, and nobody could see it
                counts: Any = {Outcome.ran: 0, Outcome.restored: 0, Outcome.unchanged: len(graph)}
            else:
                counts = pipeline(str(root), **vars(options))
        print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))

    return exit_status(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
