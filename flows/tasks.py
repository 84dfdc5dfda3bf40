"""The Prefect tasks of `pipeline`: in a module of their own, which the workers of a cluster can import by its name."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed

from flows.instance import Outcome, PassingStageError
from flows.runners import Here, InClone

RETRY_SECONDS = [2.0, 10.0, 60.0]


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
def instance(name: str, labels: list[str], where: Here | InClone, force: bool) -> State[Any]:
    """Let DVC bring one stage instance up to date."""
    _tag_task(labels)
    outcome = where.reproduce(name, get_run_logger().info, force=force)
    return Completed(name="Completed" if outcome is Outcome.ran else "Cached", message=outcome, data=outcome.value)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
def up_to_date(name: str, labels: list[str]) -> State[Any]:
    """Stand for a stage instance that needs no look."""
    _tag_task(labels)
    return Completed(name="Cached", message="up to date", data=Outcome.unchanged.value)


def _tag_task(labels: list[str]) -> None:
    """Tag the current task run: tags given beforehand make Prefect look for limits by their names, which takes long."""
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.tags = labels
