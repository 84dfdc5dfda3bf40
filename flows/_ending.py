"""How a flow started by hand ends: an exit status and one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable

from dvc.exceptions import DvcException
from prefect.exceptions import CancelledRun

from zpruner.errors import ZprunerError


def exit_status(run: Callable[[], None], kept: str = "Finished instances") -> int:
    """Run a flow; return 0, 1 where it failed, 130 where it was interrupted or cancelled.

    Args:
        run: prints its result.
        kept: what an interrupted run does not lose.
    """
    try:
        run()
    except (ZprunerError, DvcException) as error:  # of DVC's: no project, a dvc.yaml that it refuses, a busy one
        print(f"error: {error}", file=sys.stderr)
        return 1
    except RuntimeError:  # the failed instances are in the log
        return 1
    except (KeyboardInterrupt, CancelledRun):
        print(f"Interrupted. {kept} are kept: run again to go on.", file=sys.stderr)
        return 130
    return 0
