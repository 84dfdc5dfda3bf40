"""Many forward passes side by side, so that a weight that comes and goes is brought only once for all of them.

Every call runs in its own thread, one at a time and in order. Where a call needs a unit of weights that is not
there it waits; when all wait, the unit that the least advanced call needs is brought, and those that need it continue.
Each call is an ordinary forward pass: nothing is assumed about what happens between two units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class Lockstep:
    """Runs calls side by side; see the module's docstring.

    Args:
        bring: given a unit's name, makes it the one that is there.
        is_there: whether a unit is there.
    """

    def __init__(self, bring: Callable[[str], None], is_there: Callable[[str], bool]) -> None:
        self._bring, self._is_there = bring, is_there
        self._running: _Call | None = None

    @property
    def current(self) -> int | None:
        """The index of the call that is running; None outside `run`."""
        return None if self._running is None else self._running.index

    def need(self, unit: str, before: Callable[[int], None], after: Callable[[int], None]) -> None:
        """Return once `unit` is there; called by a call, or outside all calls.

        Args:
            unit: its name.
            before: called with the call's index before it waits.
            after: the same when it continues.
        """
        call = self._running
        if self._is_there(unit):
            return
        if call is None:
            self._bring(unit)
            return
        before(call.index)
        while not self._is_there(unit):
            call.wait(unit)
        after(call.index)

    def run(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run all calls, without gradients, and return their results in order.

        The first error ends all calls and is raised.
        """
        states = [_Call(index, call) for index, call in enumerate(calls)]
        try:
            while alive := [state for state in states if not state.done]:
                unit = min(alive, key=lambda state: (state.waits, state.index)).unit
                if unit is not None:
                    self._bring(unit)
                for state in alive:
                    if state.unit is None or self._is_there(state.unit):
                        self._running = state
                        state.advance()
                        self._running = None
                        if state.error is not None:
                            raise state.error
            return [state.result for state in states]
        finally:
            self._running = None
            for state in states:
                state.abandon()


class _Abandoned(BaseException):
    """Ends the thread of a call that is not to continue."""


class _Call:
    """A call in its thread; the thread and its owner take turns."""

    def __init__(self, index: int, call: Callable[[], Any]) -> None:
        self.index = index
        self.unit: str | None = None
        """What the call waits for; None before it has begun."""
        self.waits = 0
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._go, self._back = Semaphore(0), Semaphore(0)
        self._abandoned = False
        self._thread = Thread(target=self._work, args=(call,), name=f"forward-{index}", daemon=True)
        self._started = False

    def advance(self) -> None:
        """Let the call run until it waits or ends."""
        if not self._started:
            self._started = True
            self._thread.start()
        self._go.release()
        self._back.acquire()

    def wait(self, unit: str) -> None:
        """Wait for `unit`; called in the thread."""
        self.unit = unit
        self.waits += 1
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """End the thread if it has not ended by itself."""
        if self._started and not self.done:
            self._abandoned = True
            self._go.release()
        if self._started:
            self._thread.join()

    def _work(self, call: Callable[[], Any]) -> None:
        self._go.acquire()
        try:
            with torch.no_grad():
                self.result = call()
        except _Abandoned:
            pass
        except BaseException as error:
            self.error = error
        self.done = True
        self._back.release()
