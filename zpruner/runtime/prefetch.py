"""Read what the next layer needs while this one is worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

I = TypeVar("I")  # noqa: E741
T = TypeVar("T")


def ahead(items: Iterable[I], read: Callable[[I], T]) -> Iterator[tuple[I, T]]:
    """Yield every item with what `read` returns for it; the next one is read meanwhile, in its own thread.

    An error of `read` is raised when its item's turn has come.
    """
    before: tuple[I, Future[T]] | None = None
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        for item in items:
            this = (item, pool.submit(read, item))
            if before is not None:
                yield before[0], before[1].result()
            before = this
        if before is not None:
            yield before[0], before[1].result()
