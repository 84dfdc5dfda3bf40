"""Running one stage instance through DVC, and reading from its output how that went."""

from __future__ import annotations

import os
import pty
import re
import selectors
import termios
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from warm.client import Job, Refused
from zpruner.errors import without_credentials

SMALLER = {"ZPRUNER_BATCH_DIVISOR": "4"}
"""What has a stage work in smaller batches (see stages/_project.py): for the second try, once memory has run out."""
PROGRESS_SECONDS = 5.0
"""How often a progress bar becomes a line of the log."""


class Outcome(StrEnum):
    """How an instance came to be up to date."""

    ran = "ran"
    restored = "restored from the cache"
    unchanged = "unchanged"


class StageError(Exception):
    """A stage instance that failed for good: bad input, a bug."""


class PassingStageError(StageError):
    """A failure that can pass by itself: a busy lock, a lost connection."""


class OutOfMemoryStageError(StageError):
    """Memory ran out, perhaps because of what ran beside it."""


OUTCOMES = (
    (re.compile(r"^Running stage '"), Outcome.ran),
    (re.compile(r"^Stage '.*' is cached - skipping run"), Outcome.restored),
    (re.compile(r"^Stage '.*' didn't change, skipping"), Outcome.unchanged),
)
PASSING = re.compile(
    r"unable to acquire (\w+ )?lock|is busy, it is being blocked|lock held by another process"
    r"|connection (reset|refused|aborted|lost|timed out)|ConnectionError|EndpointConnectionError|ReadTimeout"
    r"|timed out|temporary failure in name resolution|network is unreachable"
    # A server's status, no other number: "502 Bad Gateway", "HTTP 503", "status code: 504", "an error occurred (503)".
    r"|\b50[234]:? (server error|bad gateway|service (temporarily )?unavailable|gateway time-?out)|\b50[234], message="
    r"|\b(http(/[0-9.]+)?|status( code)?)[ :=]+50[234]\b|error occurred \((50[234]|SlowDown)\)",
    re.IGNORECASE,
)
OUT_OF_MEMORY = re.compile(
    r"out ?of ?memory|can't allocate memory|cannot allocate memory|exited with (-9|137)$", re.IGNORECASE | re.MULTILINE
)
REASON = re.compile(r"(error|ERROR|\w*Error)\b")
DVC_REASON = re.compile(r"ERROR: failed to reproduce '[^']*': failed to run: ")
"""What DVC adds to a stage's own."""
NOISE = re.compile(
    r"!$|\s*0%|.*\D0%\|"  # a bar that has just begun, and what DVC draws before there is one
    r"|\s*(To track the changes with git, run|git add |To enable auto staging|dvc config core.autostage|Use `dvc push`)"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Place:
    """Where instances run: a warm worker's socket, its environment and the project folder."""

    socket: str
    environment: Mapping[str, str]
    root: str


def reproduce(
    place: Place, name: str, environment: Mapping[str, str], log: Callable[[str], None], *, pull: bool, force: bool
) -> Outcome:
    """Let DVC bring one instance up to date, as `dvc repro --single-item NAME` does.

    Args:
        place: where.
        name: the instance.
        environment: additions for this run, e.g. which device to use.
        log: called with every line of output, and now and then with a progress bar.
        pull: fetch what the default remote has rather than computing it.
        force: run it even if nothing changed.

    Raises:
        StageError: it failed; the class says whether trying again makes sense.
    """
    options = [option for option, chosen in (("--pull", pull), ("--force", force)) if chosen]
    arguments = ["-m", "dvc", "--wait-for-lock", "repro", "--single-item", *options, name]
    outcome = Outcome.unchanged
    last: deque[str] = deque(maxlen=30)
    reasons: list[str] = []
    """Held back: where they are the last lines of a failure, the error says them."""

    def read(line: str) -> None:
        nonlocal outcome
        last.append(line)
        reasons.append(line)
        if not REASON.match(line):
            say()
        outcome = next((found for pattern, found in OUTCOMES if pattern.search(line)), outcome)

    def say() -> None:
        for line in reasons:
            log(line)
        reasons.clear()

    status = run(place, arguments, environment, read)
    if status:
        raise failure(name, status, "\n".join(last))
    say()
    return outcome


def failure(name: str, status: int, output: str) -> StageError:
    """Return the error that a failed run deserves, with the last lines that say why."""
    reasons = [line for line in output.splitlines() if REASON.match(line)] or [output[-500:]]
    reasons = [line for line in reasons if not DVC_REASON.match(line)] or reasons
    message = without_credentials(f"{name} failed (exit status {status}): " + "; ".join(reasons[-3:]))
    if status in (-9, 137) or OUT_OF_MEMORY.search(output):
        return OutOfMemoryStageError(message)
    return PassingStageError(message) if PASSING.search(output) else StageError(message)


def run(place: Place, arguments: list[str], environment: Mapping[str, str], log: Callable[[str], None]) -> int:
    """Run `python ARGUMENTS` in the worker and return its exit status; its output goes to `log` as it comes."""
    out, out_end = os.pipe()
    err, err_end = _terminal()
    try:
        try:
            with open(os.devnull) as nothing:  # noqa: PTH123
                fds = (nothing.fileno(), out_end, err_end)
                job = Job(place.socket, arguments, {**place.environment, **environment}, fds, place.root)
        except Refused as reason:
            raise StageError(f"the warm worker did not start it: {reason}") from None
        finally:
            os.close(out_end)
            os.close(err_end)
        try:
            _follow({out: _Lines(log), err: _Lines(log)})
            return job.wait()
        finally:
            job.close()
    finally:
        os.close(out)
        os.close(err)


def _terminal() -> tuple[int, int]:
    """Return both ends of a terminal 100 columns wide: progress bars are drawn on nothing else."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # a newline stays one
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    return ours, theirs


def _follow(streams: dict[int, _Lines]) -> None:
    """Feed each stream until both have ended."""
    with selectors.DefaultSelector() as selector:
        for fd in streams:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                try:
                    data = os.read(key.fd, 1 << 16)
                except OSError:  # a terminal whose other end is closed
                    data = b""
                streams[key.fd].feed(data)
                if not data:
                    selector.unregister(key.fd)


class _Lines:
    """Cuts a stream into lines; a line drawn over again and again counts only every few seconds."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log, self._rest, self._shown = log, b"", time.monotonic()

    def feed(self, data: bytes) -> None:
        """Take more of the stream; b"" ends it."""
        *pieces, self._rest = re.split(rb"(?<=[\n\r])", self._rest + data)
        for piece in [*pieces, *([self._rest] if not data else [])]:
            text = ESCAPES.sub("", piece.decode(errors="replace")).rstrip()
            if not text or NOISE.match(text):
                continue
            if piece.endswith(b"\r"):
                if time.monotonic() - self._shown < PROGRESS_SECONDS:
                    continue
                self._shown = time.monotonic()
            self._log(text)
