"""The end of a process, short of taking every library apart, which takes some tenths of a second after torch."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading


def settle() -> None:
    """Do what the interpreter does before it ends, so that `os._exit` loses nothing.

    Threads are waited for, what is registered to run at exit is run, and the streams are flushed.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
