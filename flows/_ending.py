"""How a flow ends: the state that Prefect shows; by hand, an exit status and one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import httpx
from dvc.exceptions import DvcException
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Failed

from flows._api import PrefectServerError
from zpruner.errors import ZprunerError, without_credentials


class NotDoneError(RuntimeError):
    """Stage instances failed, and what needs them was not begun.

    Args:
        summary: how many, and which.
        reasons: of each failed one; the log of its task has it already.
    """

    def __init__(self, summary: str, reasons: Iterable[str]) -> None:
        super().__init__(" ".join([summary, *reasons]))
        self.summary = summary


ENDS = (CancelledRun, NotDoneError)


def as_state(end: CancelledRun | NotDoneError) -> State[Any]:
    """Return the state of a run that ended so: raised, it would be logged with every reason once more."""
    if isinstance(end, NotDoneError):
        return Failed(message=end.summary, data=end)
    return Cancelled(message=str(end))


def exit_status(run: Callable[[], None], kept: str = "Finished instances") -> int:
    """Run a flow; return 0, 1 where it failed, 130 where it was interrupted or cancelled.

    Args:
        run: prints its result.
        kept: what an interrupted run does not lose.
    """
    try:
        run()
    except (ZprunerError, DvcException) as error:  # of DVC's: no project, a dvc.yaml that it refuses, a busy one
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        return 1
    except httpx.TransportError as error:
        server, got = str(PREFECT_API_URL.value()), f"{type(error).__name__}: {error}"
        todo = f"Start it, or unset PREFECT_API_URL: a run then has its own server. {kept} are kept."
        print(f"error: {PrefectServerError(server, got, 'an answer', todo)}", file=sys.stderr)
        return 1
    except NotDoneError:  # the failed instances are in the log
        return 1
    except (KeyboardInterrupt, CancelledRun):
        print(f"Interrupted. {kept} are kept: run again to continue.", file=sys.stderr)
        return 130
    return 0
