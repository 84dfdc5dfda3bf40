"""The warm worker's process: imports third-party libraries once, then forks a child for every module to be run.

It never runs project code nor touches an accelerator, and nothing that a child does changes it: every child starts
from the same state. Standard library only, and no import of the library, the stages or the flows.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import multiprocessing.util
import os
import selectors
import signal
import socket
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warm._child import Request, become, run
from warm._environment import matters
from warm.client import die_with_parent

# Arrow's allocator starts its own thread, and sees to it around a fork.
HARMLESS_THREADS = {"jemalloc_bg_thd"}


@dataclass
class _Child:
    """A running child and who asked for it."""

    pid: int
    connection: socket.socket


def preload(names: list[str]) -> None:
    """Import what is installed of `names`; what is not, a stage that needs it will say better."""
    for name in names:
        if importlib.util.find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    _fill_tables()
    accelerator = sys.modules.get("torch")
    if accelerator is not None and accelerator.cuda.is_initialized():
        sys.exit("worker: importing a library initialised an accelerator, which does not survive a fork")
    if extra := _other_threads():
        sys.exit(f"worker: importing a library started threads ({', '.join(extra)}), which do not survive a fork")
    _forget_exits()
    gc.collect()
    gc.freeze()  # keeps the collector from writing to, and so copying, shared pages


def _fill_tables() -> None:
    """Have libraries fill the tables that they make at first use: transformers' of renamed weights takes a second."""
    if (renamed := sys.modules.get("transformers.conversion_mapping")) is not None:
        renamed.get_checkpoint_conversion_mapping("")


def _forget_exits() -> None:
    """Drop what the libraries want done when an interpreter ends: they take apart what is their own, for 0.1 s."""
    atexit._clear()
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    # What the standard library wants done is for what a child will have begun.
    for function in (logging.shutdown, weakref.finalize._exitfunc, multiprocessing.util._exit_function):  # type: ignore[attr-defined]
        atexit.register(function)


def _other_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    tasks = Path("/proc/self/task")
    if tasks.is_dir():
        comms = {task.name: (task / "comm").read_text().strip() for task in tasks.iterdir()}
        names += [name for task, name in comms.items() if int(task) != os.getpid() and name not in HARMLESS_THREADS]
    return names


class Server:
    """Accepts requests, forks, passes signals on and reports how children ended.

    Args:
        listener: the socket that clients connect to.
        lifeline: the read end of a pipe whose other end the owner holds; the owner's death closes it.
        environment: the environment that the libraries were imported in.
        added: what they added to it; a child that does not know of these gets them as well.
    """

    def __init__(
        self, listener: socket.socket, lifeline: int, environment: dict[str, str], added: dict[str, str]
    ) -> None:
        self._listener, self._lifeline = listener, lifeline
        self._environment, self._added = environment, added
        self._children: dict[int, _Child] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken.fileno())
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(lifeline, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def serve(self) -> Request:
        """Serve until the owner is gone. Returns in a child only, with what it is to run."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif key.fileobj is self._wake:
                    with contextlib.suppress(BlockingIOError):
                        self._wake.recv(4096)
                    self._reap()
                elif key.fileobj == self._lifeline:
                    self._end()
                elif key.data.pid in self._children:
                    self._hear(key.data)

    def _accept(self) -> Request | None:
        """Fork for one client; returns the request in the child."""
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        try:
            request = _receive(connection)
            reason = self._objection(request)
        except (OSError, ValueError) as error:
            print(f"worker: a request that cannot be read: {error}", file=sys.stderr)
            connection.close()
            return None
        parent = os.getpid()
        # Told before there is a child: whoever hears nothing starts the module anew.
        self._tell(connection, {"started": True} if reason is None else {"refused": reason})
        pid = os.fork() if reason is None else None
        if pid == 0:
            self._leave(connection)
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
            os.setsid()
            return request
        for fd in request.fds:
            os.close(fd)
        if pid is None:
            connection.close()
            return None
        child = _Child(pid, connection)
        self._children[pid] = child
        self._selector.register(connection, selectors.EVENT_READ, child)
        return None

    def _objection(self, request: Request) -> str | None:
        """Return why a child of this process would not do as a new interpreter would, or None."""
        mine, yours = self._environment | self._added, self._added | request.environment
        differing = {name for name in {*mine, *yours} if matters(name) and mine.get(name) != yours.get(name)}
        return f"{', '.join(sorted(differing))} not as when the worker started" if differing else None

    def _leave(self, connection: socket.socket) -> None:
        """In a child: close everything of the server's."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for child in self._children.values():
            child.connection.close()
        for end in (connection, self._listener, self._wake, self._woken, self._selector):
            end.close()
        os.close(self._lifeline)

    def _hear(self, child: _Child) -> None:
        """Pass a client's signal on; a client that is gone takes its child with it."""
        try:
            numbers = child.connection.recv(16)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            _kill(child.pid, number)
        if not numbers:
            self._selector.unregister(child.connection)

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid)
            _kill(pid, signal.SIGKILL)  # whatever it left behind in its group
            self._tell(child.connection, {"exit": os.waitstatus_to_exitcode(status)})
            with contextlib.suppress(KeyError):
                self._selector.unregister(child.connection)
            child.connection.close()

    def _tell(self, connection: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the client is gone: `_hear` sees to it
            connection.sendall(json.dumps(message).encode() + b"\n")

    def _end(self) -> None:
        """Kill every child, the oldest (which started the others) first, and exit."""
        for child in self._children.values():
            _kill(child.pid, signal.SIGKILL)
        os._exit(0)


def _receive(connection: socket.socket) -> Request:
    head, fds, _, _ = socket.recv_fds(connection, 4, 3)
    length = int.from_bytes(head, "big")
    message = b""
    while len(message) < length:
        chunk = connection.recv(min(1 << 16, length - len(message)))
        if not chunk:
            raise ValueError("it is cut off")
        message += chunk
    if len(head) != 4 or len(fds) != 3:
        raise ValueError("no length, or not three file descriptors")
    return Request(**json.loads(message), fds=list(fds))


def _kill(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main(listener: int, lifeline: int, names: list[str]) -> None:
    """Be the worker; in children, run the module asked for."""
    before = dict(os.environ)
    preload(names)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # from now on there may be children, and the owner decides when this ends
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    request = Server(socket.socket(fileno=listener), lifeline, before, added).serve()
    run(become(request, added))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
