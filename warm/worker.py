"""Starting and stopping warm workers."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from warm._folder import Folder
from warm.libraries import DVC, LIBRARIES


class Worker(AbstractContextManager["Worker"]):
    """Starts the warm worker and stops it, with every child, at the end. Use as a context manager.

    Args:
        root: the project folder.
        libraries: modules to import beforehand.
        environment: the environment of the worker and of what runs in it.
        launcher: whether commands in that environment are to find this worker behind the name `python`.
    """

    def __init__(
        self,
        root: Path,
        libraries: tuple[str, ...] = LIBRARIES,
        environment: Mapping[str, str] = os.environ,
        *,
        launcher: bool = True,
    ) -> None:
        self._folder = Folder()
        self.socket = str(self._folder.path / "socket")
        self.environment = {name: value for name, value in environment.items() if name != "SSH_AUTH_SOCK"}
        """The environment for commands whose stages are to run in the worker: no agent to forward (see share.py)."""
        if launcher:
            self._write_launcher()
            self.environment["PATH"] = f"{self._folder.path}{os.pathsep}{environment.get('PATH', os.defpath)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.socket)
            listener.listen(128)  # who comes before the libraries are imported waits here
            lifeline, self._lifeline = os.pipe()
            fds = (listener.fileno(), lifeline)
            # numpy's BLAS would start threads on import; the stages' linear algebra is torch's.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "warm._serve", *map(str, fds), *libraries],
                cwd=root,
                env={**self.environment, "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C goes to the command, which passes it on
            )
            os.close(lifeline)

    def close(self) -> None:
        """Kill what is still running and stop the worker."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            self._process.terminate()  # heard only while it is still importing
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._folder.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_launcher(self) -> None:
        python, client = shlex.quote(sys.executable), shlex.quote(str(Path(__file__).with_name("client.py")))
        ours = f"{shlex.quote(self.socket)} {os.getpid()}"
        lines = [
            "#!/bin/sh",
            f'case "$1:$2" in -m:stages.*) exec {python} -IS {client} {ours} "$@" ;; esac',
            f'exec {python} "$@"',
        ]
        launcher = self._folder.path / "python"
        launcher.write_text("\n".join(lines) + "\n", encoding="utf-8")
        launcher.chmod(0o700)


class Workers(AbstractContextManager["Workers"]):
    """A worker for DVC and one for the stages that it starts. Use as a context manager.

    DVC need not wait for the libraries of stages, and a fork of a small process costs less.
    """

    def __init__(self, root: Path) -> None:
        self.stages = Worker(root, LIBRARIES)
        self.dvc = Worker(root, DVC, self.stages.environment, launcher=False)
        self.socket, self.environment = self.dvc.socket, self.dvc.environment

    def close(self) -> None:
        """Kill what is still running and stop both."""
        self.dvc.close()
        self.stages.close()

    def __exit__(self, *_: object) -> None:
        self.close()
