"""Progress where a person waits: a bar on a terminal and in a notebook, elsewhere a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event, Thread
from time import monotonic
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

HEARTBEAT = 60.0
"""Seconds between two lines where no bar is drawn: a log tells a long run from one that hangs."""
_DRAWN: ContextVar[tqdm[Any] | None] = ContextVar("drawn", default=None)
"""The bar inside whose block this is."""


def progress(items: Iterable[T], description: str, total: int, unit: str, done: int = 0) -> Iterator[T]:
    """Yield `items` behind a bar with counts and the time that remains, or with a line now and then.

    Args:
        items: what is still to do.
        description: shown before the bar.
        total: how many items there are in all, those done earlier included.
        unit: what one item is, e.g. "layer".
        done: how many were done by an earlier, interrupted run.
    """
    with _shown(description, total, unit, done, HEARTBEAT) as (step, _):
        for item in items:
            yield item
            step()


@contextmanager
def counter(
    description: str, total: int, unit: str, done: int = 0, every: float = HEARTBEAT
) -> Iterator[Callable[[], None]]:
    """Yield a function that moves a bar on by one, or counts for the lines that are written every so many seconds.

    What counts inside its block does so at the end of its bar: a line, however deep the work is. (Not so inside the
    loop of `progress`, of which nobody knows when an error has left it.)
    """
    with _shown(description, total, unit, done, every) as (step, bar):
        if bar is None:
            yield step
            return
        _DRAWN.set(bar)
        try:
            yield step
        finally:
            _DRAWN.set(None)


@contextmanager
def _shown(
    description: str, total: int, unit: str, done: int, every: float
) -> Iterator[tuple[Callable[[], None], tqdm[Any] | None]]:
    """Yield what counts, and the bar that is drawn for it alone, if one is."""
    around = _DRAWN.get()
    if around is not None:
        yield _Within(around, description, total, done).step, None
        around.set_postfix_str("", refresh=False)
        return
    if draws_bars():
        with tqdm(desc=description, total=total, unit=unit, initial=done) as bar:

            def step() -> None:
                bar.update()

            yield step, bar
        return
    pulse = _Heartbeat(description, total, unit, done, every)
    try:
        yield pulse.step, None
    finally:
        pulse.stop()


def draws_bars() -> bool:
    """Return whether standard error shows a bar that is drawn over and over: a terminal, or a notebook's cell."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, which shows what is written over a line as it comes."""
    shell = None if "IPython" not in sys.modules else sys.modules["IPython"].get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


class _Within:
    """Shows at the end of a bar how far the work of its step is, as often as the bar itself is drawn."""

    def __init__(self, bar: tqdm[Any], description: str, total: int, done: int) -> None:
        self._bar, self._words, self._total, self._count, self._shown = bar, description, total, done, monotonic()

    def step(self) -> None:
        self._count += 1
        if monotonic() - self._shown >= self._bar.mininterval:
            self._bar.set_postfix_str(f"{self._words} {self._count}/{self._total or '?'}")
            self._shown = monotonic()


class _Heartbeat:
    """Writes how far the work is, from its own thread: one step may take longer than the time between lines."""

    def __init__(self, description: str, total: int, unit: str, done: int, every: float) -> None:
        self._words, self._total, self._unit, self._count, self._every = description, total, unit, done, every
        self._start, self._ended = monotonic(), Event()
        self._thread = Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def step(self) -> None:
        self._count += 1

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            of = f"{self._count} of {self._total}" if self._total else f"{self._count}"
            units = f"{self._unit}es" if self._unit.endswith("ch") else f"{self._unit}s"
            seconds = monotonic() - self._start
            print(f"{self._words}: {of} {units} after {seconds:,.0f} s", file=sys.stderr, flush=True)
