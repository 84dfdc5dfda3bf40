"""How a flow started by hand ends: an exit status and one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable

import httpx
from dvc.exceptions import DvcException
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL

from flows._api import PrefectServerError
from zpruner.errors import ZprunerError, without_credentials


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
        todo = f"Start it, or unset PREFECT_API_URL: a run then has a server of its own. {kept} are kept."
        print(f"error: {PrefectServerError(server, got, 'an answer', todo)}", file=sys.stderr)
        return 1
    except RuntimeError:  # the failed instances are in the log
        return 1
    except (KeyboardInterrupt, CancelledRun):
        print(f"Interrupted. {kept} are kept: run again to go on.", file=sys.stderr)
        return 130
    return 0
