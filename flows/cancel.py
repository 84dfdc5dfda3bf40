"""Cancelling a run from Prefect's UI.

A Prefect worker ends the process of a run that is being cancelled; where a run was started by hand nobody would.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

POLL_SECONDS = 2.0


@contextmanager
def watching(stop: Callable[[], None]) -> Iterator[threading.Event]:
    """Call `stop`, once, when the current run, or the one that it is part of, is being cancelled.

    Yields:
        An event that is then set.
    """
    cancelled, over = threading.Event(), threading.Event()
    runs = {UUID(name) for name in (flow_run.id, flow_run.root_flow_run_id) if name}
    logger = get_run_logger()

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not over.wait(POLL_SECONDS):
                if any(_is_cancelled(client, run) for run in runs):
                    logger.info("being cancelled: stopping what runs")
                    cancelled.set()
                    stop()
                    return

    watcher = threading.Thread(target=copy_context().run, args=(watch,), daemon=True)
    watcher.start()
    try:
        yield cancelled
    finally:
        over.set()
        watcher.join(POLL_SECONDS)  # longer only where the server is away, and then there is nothing to wait for


def _is_cancelled(client: SyncPrefectClient, run: UUID) -> bool:
    try:
        state = client.read_flow_run(run).state
    except (httpx.HTTPError, PrefectException):  # a server that is away for a while
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())
