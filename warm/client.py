"""Asks the warm worker to run a Python module; run as a script, it is the `python` that stages are started with.

Standard library only, and little of it: this is what every stage run pays.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping

PR_SET_PDEATHSIG = 1
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Refused(Exception):  # noqa: N818 - no error: the caller starts Python the plain way
    """The worker is gone, or cannot stand in for a new interpreter here."""


class Gone(Refused):
    """There is no worker any more."""


class Job:
    """One module running in a child of the worker.

    Args:
        path: the worker's socket.
        arguments: `["-m", module, ...]`.
        environment: the child's whole environment.
        fds: its standard input, output and error.
        cwd: its folder.

    Raises:
        Refused: nothing was started.
    """

    def __init__(
        self, path: str, arguments: list[str], environment: Mapping[str, str], fds: tuple[int, int, int], cwd: str
    ) -> None:
        umask = os.umask(0)
        os.umask(umask)
        request = {"arguments": arguments, "environment": dict(environment), "cwd": cwd, "umask": umask}
        request["ignored"] = ignored_signals()
        message = json.dumps(request).encode()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
            socket.send_fds(self._socket, [len(message).to_bytes(4, "big")], fds)
            self._socket.sendall(message)
            self._replies = self._socket.makefile("rb")
            reply = self._replies.readline()
        except OSError as error:
            self._socket.close()
            raise Gone(f"no worker ({error})") from None
        if not reply:
            self.close()
            raise Gone("the worker has ended")
        answer = json.loads(reply)
        if "refused" in answer:
            self.close()
            raise Refused(answer["refused"])

    def signal(self, number: int) -> None:
        """Send a signal to the child and everything that it started."""
        self._socket.sendall(bytes([number]))

    def wait(self) -> int:
        """Return the child's exit status once it has ended, -N for signal N; 1 if the worker died (and it as well)."""
        reply = self._replies.readline()
        self.close()
        return int(json.loads(reply)["exit"]) if reply else 1

    def close(self) -> None:
        """Let go; a child that is still running is killed."""
        self._replies.close()
        self._socket.close()


def ignored_signals() -> list[int]:
    """Return which signals this process ignores (under `nohup`, say): so would a process that it starts."""
    return [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]


def is_orphan(owner: int) -> bool:
    """Return whether `owner` is no ancestor of this process any more (Linux; elsewhere False)."""
    pid = os.getppid()
    while pid > 1 and pid != owner:
        try:
            with open(f"/proc/{pid}/stat", "rb") as stat:  # noqa: PTH123 - pathlib is slow to import
                pid = int(stat.read().rpartition(b")")[2].split()[1])
        except FileNotFoundError:
            return sys.platform == "linux"
    return pid != owner


def die_with_parent() -> None:
    """Ask the kernel to kill this process, whatever it becomes, when its parent dies (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        import ctypes  # the usual way need not pay for it

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(path: str, owner: int, arguments: list[str]) -> None:
    """Run `python ARGUMENTS` in the worker at `path`, or in a new interpreter where that is not possible.

    Args:
        path: the worker's socket.
        owner: the process that started the worker, and above that the command whose stages run in it.
        arguments: `["-m", module, ...]`.
    """
    try:
        cwd = os.getcwd()  # noqa: PTH109 - pathlib is slow to import
        job = Job(path, arguments, os.environ, (0, 1, 2), cwd)
    except Refused as reason:
        print(f"plain start-up of Python: {reason}", file=sys.stderr, flush=True)
        if isinstance(reason, Gone):
            die_with_parent()
            if is_orphan(owner):
                sys.exit("not started: the run that it belongs to has ended")
        os.execv(sys.executable, [sys.executable, *arguments])
    for number in set(FORWARDED) - set(ignored_signals()):
        signal.signal(number, lambda received, _frame: job.signal(received))
    status = job.wait()
    if status < 0:  # end as the child did, so that the shell and DVC see the same
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
