"""The command as a process of its own: `zpruner`, and `python -m zpruner`."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from zpruner.runtime.ending import settle


def main() -> NoReturn:
    """Run the command line and end the process with its status: 130, after one sentence, whenever Ctrl-C comes."""
    status = 0
    try:
        from zpruner.cli import main as run

        run()
    except KeyboardInterrupt:  # before the command could say more
        _interrupted("Interrupted.")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    # What failed, or was interrupted, has said its sentence.
    signal.signal(signal.SIGINT, signal.SIG_IGN if status else lambda *_: _interrupted("Interrupted; all was done."))
    settle()
    os._exit(status)


def _interrupted(sentence: str) -> NoReturn:
    os.write(2, f"{sentence}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    main()
