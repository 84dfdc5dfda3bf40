"""Progress bars: visible on a terminal, silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], description: str, total: int, unit: str, done: int = 0) -> Iterator[T]:
    """Yield `items` behind a bar with counts and the time that remains; no output when stderr is no terminal.

    Args:
        items: what is still to do.
        description: shown before the bar.
        total: how many items there are in all, those done earlier included.
        unit: what one item is, e.g. "layer".
        done: how many were done by an earlier, interrupted run.
    """
    yield from tqdm(items, desc=description, total=total, unit=unit, initial=done, disable=None, leave=True)


@contextmanager
def counter(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Yield a function that moves a bar on by one; no output when stderr is no terminal."""
    with tqdm(desc=description, total=total, unit=unit, disable=None) as bar:

        def step() -> None:
            bar.update()

        yield step
