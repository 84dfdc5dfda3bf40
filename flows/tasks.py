"""The Prefect tasks of `pipeline`: a stage instance that DVC brings up to date, and one that is so already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed, Failed

from flows.instance import SMALLER, Outcome, OutOfMemoryStageError, PassingStageError, Place, StageError, reproduce
from flows.slots import Slots

RETRY_SECONDS = [2.0, 10.0, 60.0]
Log = Callable[[str], None]


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
        """Let DVC bring the instance up to date, on its own device slot.

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
def instance(name: str, labels: list[str], where: Here, force: bool) -> State[Any]:
    """Let DVC bring one stage instance up to date."""
    _tag_task(labels)
    try:
        outcome = where.reproduce(name, get_run_logger().info, force=force)
    except PassingStageError:
        raise  # Prefect tries again
    except StageError as error:
        return Failed(message=str(error), data=error)
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
