"""A warm worker: third-party libraries are imported once, and every stage run is forked from there.

A stage of a second of work pays several seconds of imports. Under `python -m flows.worker COMMAND` (`dvc repro`, say)
a `python` comes first in PATH that hands `python -m stages...` to the worker and everything else to Python itself.
DVC runs its stages as ever, the command in dvc.lock is the same, and so is every artifact:

- the worker imports libraries only, on one thread, and never touches an accelerator; project code is imported by the
  child, so changes to it count at once;
- a child gets the caller's streams, folder, environment and umask; where the environment differs in what libraries
  may have read on import, Python starts the plain way, and says so;
- signals reach the child; it dies when its caller, the worker or the worker's owner dies; where the worker is gone,
  Python starts the plain way, unless the command that asked for it is gone as well.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Self

from flows._client import Job

LIBRARIES = (
    "torch",
    "numpy",
    "pyarrow.ipc",
    "pyarrow.compute",
    "safetensors.torch",
    "tokenizers",
    "transformers.generation",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.processing_utils",
    "pydantic.type_adapter",
    "ruamel.yaml",
    "typer._click.decorators",
    "rich.table",
    "tqdm",
    "xxhash",
    "jinja2",
    "vl_convert",
)
DVC = (
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.repo.open_repo",
    "dvc.repo.reproduce",
    "dvc.stage.run",
    "dvc.cachemgr",
    "dvc.data_cloud",
    "dvc.utils.strictyaml",
    "dvc_data.hashfile.status",
    "dvc_data.hashfile.db.local",
    "scmrepo.git",
)


class Worker:
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
        self._root = str(root.resolve())
        self._folder = Path(tempfile.mkdtemp(prefix="zpruner-worker-"))
        self.socket = str(self._folder / "socket")
        self.environment = {name: value for name, value in environment.items() if name != "SSH_AUTH_SOCK"}
        """The environment for commands whose stages are to run in the worker: no agent to forward (see share.py)."""
        if launcher:
            self._write_launcher()
            self.environment["PATH"] = f"{self._folder}{os.pathsep}{environment.get('PATH', os.defpath)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(self.socket)
            listener.listen(128)  # who comes before the libraries are imported waits here
            lifeline, self._lifeline = os.pipe()
            fds = (listener.fileno(), lifeline)
            # numpy's BLAS would start threads on import; the stages' linear algebra is torch's.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows._serve", *map(str, fds), *libraries],
                cwd=root,
                env={**self.environment, "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # Ctrl-C goes to the command, which passes it on
            )
            os.close(lifeline)

    def start(
        self, arguments: list[str], fds: tuple[int, int, int], environment: Mapping[str, str] | None = None
    ) -> Job:
        """Start `python ARGUMENTS` (`["-m", module, ...]`) in the worker.

        Args:
            arguments: what would follow `python`.
            fds: standard input, output and error of the child.
            environment: additions to the worker's environment.

        Raises:
            flows._client.Refused: the worker has ended, or the environment differs too much.
        """
        return Job(self.socket, arguments, {**self.environment, **(environment or {})}, fds, self._root)

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
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_launcher(self) -> None:
        python, client = shlex.quote(sys.executable), shlex.quote(str(Path(__file__).with_name("_client.py")))
        ours = f"{shlex.quote(self.socket)} {os.getpid()}"
        lines = [
            "#!/bin/sh",
            f'case "$1:$2" in -m:stages.*) exec {python} -IS {client} {ours} "$@" ;; esac',
            f'exec {python} "$@"',
        ]
        launcher = self._folder / "python"
        launcher.write_text("\n".join(lines) + "\n", encoding="utf-8")
        launcher.chmod(0o700)


class Workers:
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


early_worker: ContextVar[Worker | Workers | None] = ContextVar("early_worker", default=None)
"""Workers that the caller of a flow has started already."""


def early_or_new(root: Path) -> AbstractContextManager[Worker | Workers]:
    """Return the workers that are there already, which their owner closes, or new ones."""
    early = early_worker.get()
    return Workers(root) if early is None else nullcontext(early)


def _mend(root: Path) -> None:
    from dvc.exceptions import DvcException

    from flows.mend import mend

    with suppress(DvcException):  # whatever else is wrong, DVC itself says
        mend(root)


def main(command: list[str]) -> int:
    """Run a command with its stages in a warm worker; returns its exit status."""
    if not command:
        print("usage: python -m flows.worker COMMAND [ARGUMENT ...], e.g. python -m flows.worker dvc repro")
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
