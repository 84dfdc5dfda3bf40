"""The command: `python -m warm COMMAND [ARGUMENT ...]` runs a command with its stages in a warm worker."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from warm.worker import Worker


def main(command: list[str]) -> int:
    """Run a command with its stages in a warm worker; returns its exit status."""
    if not command:
        print("usage: python -m warm COMMAND [ARGUMENT ...], e.g. python -m warm dvc repro")
        return 2
    root = Path.cwd()
    with Worker(root) as worker:
        if command[0] == "dvc" and (root / "dvc.lock").exists():
            _mend(root)  # while the worker imports
        process = subprocess.Popen(command, env=worker.environment)
        # Ctrl-C reaches the command as well; a termination has to be passed on.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
        status = process.wait()
    return 128 - status if status < 0 else status


def _mend(root: Path) -> None:
    from dvc.exceptions import DvcException

    from warm.mend import mend

    with suppress(DvcException):  # whatever else is wrong, DVC itself says
        mend(root)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
