"""What a command says, also written to a file: `--log`."""

from __future__ import annotations

import io
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from zpruner.errors import InvalidSettingError


class Transcript:
    """Appends every line of standard output and standard error to a file, each with its time, once `open` is called.

    Args:
        command: what was called, with its arguments: the first line.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._started = time.monotonic()
        self._file: TextIO | None = None

    def open(self, path: Path) -> None:
        """Begin to write to `path`, behind what is in it.

        Raises:
            InvalidSettingError: it cannot be written.
        """
        try:
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InvalidSettingError(
                f"--log {path}", str(error.strerror), "a file to append to", "Choose another path."
            ) from None
        self._streams = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Both(sys.stdout, self), _Both(sys.stderr, self)
        self.line(shlex.join(self._command))

    def line(self, text: str) -> None:
        """Write one line."""
        if self._file is not None:
            print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), text, file=self._file, flush=True)

    def close(self, status: int) -> None:
        """Write how the command ended, and leave the streams as they were."""
        if self._file is None:
            return
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Both):
                stream.finish()
        self.line(f"exit status {status} after {time.monotonic() - self._started:.1f} s")
        sys.stdout, sys.stderr = self._streams
        self._file.close()
        self._file = None


class _Both(io.TextIOBase):
    """A stream that writes to another one, and whole lines to a transcript."""

    def __init__(self, stream: TextIO, transcript: Transcript) -> None:
        self._stream, self._transcript, self._begun = stream, transcript, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._transcript.line(line.rpartition("\r")[2])  # of a bar what stands there in the end
        return self._stream.write(text)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if last := self._begun.rpartition("\r")[2].strip():
            self._transcript.line(last)
        self._begun = ""

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True
