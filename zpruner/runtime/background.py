"""Calls on background threads, of which a bounded number waits: files are written while the next one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs calls on its own threads, begun in the order in which they came. Close it at the end.

    Args:
        threads: calls that run at a time. As many may be unfinished when another one comes, which bounds the memory
            of what they hold.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._pending: deque[Future[None]] = deque()

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call, once there is room for it. The error of an earlier one is raised here instead."""
        while len(self._pending) >= self._threads:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(call))

    def drain(self) -> None:
        """Wait for every call; raise the first error."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Wait for every call, whatever becomes of it, and end the threads."""
        self._pool.shutdown()
