"""A child of the warm worker: becomes what a new interpreter would have been, and runs one module."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import runpy
import signal
import sys
import threading
from dataclasses import dataclass, field
from typing import NoReturn


@dataclass
class Request:
    """What a client asks for."""

    arguments: list[str]
    environment: dict[str, str]
    cwd: str
    umask: int
    ignored: list[int]
    fds: list[int] = field(default_factory=list)


def become(request: Request, added: dict[str, str]) -> str:
    """In a child: take on all that a new interpreter would have been given; returns the module to run."""
    for number, fd in enumerate(request.fds):
        os.dup2(fd, number)
        os.close(fd)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        before = getattr(sys, name)
        line_buffered = name == "stderr" or (name == "stdout" and os.isatty(number))
        buffering = 1 if line_buffered else -1
        stream = os.fdopen(number, mode, buffering, encoding=before.encoding, errors=before.errors, closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.umask(request.umask)
    for number in request.ignored:
        signal.signal(number, signal.SIG_IGN)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment | added)
    module = request.arguments[1]
    sys.argv = ["-m", *request.arguments[2:]]
    sys.path[0] = request.cwd
    for name in [name for name in sys.modules if name.partition(".")[0] == "warm"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    threads = request.environment.get("OMP_NUM_THREADS")
    if threads is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))  # OpenMP read the variable when the worker started
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    return module


def run(module: str) -> NoReturn:
    """Run a module as `python -m` does and exit as the interpreter would, short of taking every library apart."""
    status: object = 0
    interrupted = False
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        sys.excepthook(type(error), error, error.__traceback__)
        status = 1
    if status is not None and not isinstance(status, int):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end of an interpreter does
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)
