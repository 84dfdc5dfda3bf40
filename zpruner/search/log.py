"""The search log: an append-only JSONL file, one line per evaluation, from which a search resumes exactly."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from zpruner.artifacts.work import digest_of, disk_full_named
from zpruner.errors import ArtifactError, LockedError

FORMAT = 2


@dataclass(frozen=True)
class Measurement:
    """What evaluating a formula gave: its fitness, and what the seconds went to, by part."""

    fitness: float
    parts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One formula measured at one rung. `fitness` is smaller = better, None = rejected as not finite."""

    index: int
    generation: int
    rung: int
    windows: int
    formula: str
    canonical: str
    operator: str
    """initial, random, crossover or mutation."""
    parents: tuple[str, ...]
    fitness: float | None
    seconds: float
    parts: dict[str, float]
    """Seconds by what they were spent on; several devices measure at a time, so that these may add up to more."""


@dataclass(frozen=True)
class SearchLog:
    """What a log file says: settings without budgets, what the fitness depends on, the evaluations in order."""

    settings: dict[str, Any]
    context: str
    evaluations: tuple[Evaluation, ...]
    stopped: str | None
    """Why the last run ended by itself: generations, evaluations, seconds or exhausted; None if interrupted."""


def read_log(path: Path) -> SearchLog:
    """Read a log, finished or not; a last line cut short by a crash is ignored.

    Raises:
        ArtifactError: no log, another format, or damaged before its last line.
    """
    lines = _whole_lines(path.read_bytes())[0] if path.exists() else []
    records = [_record(path, number, line) for number, line in enumerate(lines, start=1)]
    if not records or records[0].get("kind") != "header" or records[0].get("format") != FORMAT:
        raise ArtifactError(
            str(path),
            "no header of a search log" if path.exists() else "no file",
            f"a search log of format {FORMAT}",
            "Name another file, or start the search anew.",
        )
    evaluations = [_evaluation(path, number, r) for number, r in enumerate(records, 1) if r["kind"] == "evaluation"]
    if [e.index for e in evaluations] != list(range(len(evaluations))):
        raise _damaged(path, "evaluations missing or out of order")
    stopped = records[-1]["reason"] if records[-1]["kind"] == "stop" else None
    return SearchLog(records[0]["settings"], records[0]["context"], tuple(evaluations), stopped)


class LogWriter:
    """The log of a running search: what is recorded, and appending to it. Use as a context manager.

    Args:
        path: the file; created with its header where missing or empty.
        settings: what decides the order of the formulas.
        context: what the fitness depends on (model, texts, sparsities), in the caller's words.

    Raises:
        ArtifactError: the file is the log of other settings or another context, or is damaged.
        LockedError: another process appends to it.
    """

    def __init__(self, path: Path, settings: dict[str, object], context: str) -> None:
        self.path, self._settings, self._context = path, settings, context
        self.recorded: tuple[Evaluation, ...] = ()
        self._stopped: str | None = None
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BaseException as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise LockedError(
                    str(self.path), "a lock held by another process", "one search per log", "Wait for it, or stop it."
                ) from None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, evaluation: Evaluation) -> None:
        """Write one evaluation, synced to disk.

        Raises:
            DiskFullError: no space left.
        """
        rounded = {part: round(seconds, 4) for part, seconds in evaluation.parts.items()}
        self._write({"kind": "evaluation", **asdict(evaluation), "parts": rounded})
        self._stopped = None

    def stop(self, reason: str, evaluations: int) -> None:
        """Record why the search ended, unless the log ends so already."""
        if self._stopped != reason:
            self._write({"kind": "stop", "reason": reason, "evaluations": evaluations})

    def _open(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        lines, length = _whole_lines(self._file.read())
        self._file.truncate(length)
        if not lines:
            header = {"kind": "header", "format": FORMAT, "settings": self._settings, "context": self._context}
            self._write({**header, "digest": digest_of([self._settings, self._context])})
            return
        log = read_log(self.path)
        for name, ours in {**self._settings, "context": self._context}.items():
            theirs = log.context if name == "context" else log.settings.get(name)
            if ours != theirs:
                raise ArtifactError(
                    f"search log {self.path}",
                    f"a search with {name} {theirs!r}",
                    f"{name} {ours!r}",
                    "Restore that setting, or move the log away to start a new search.",
                )
        self.recorded, self._stopped = log.evaluations, log.stopped

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file is not None, "use the log as a context manager"
        with disk_full_named(self.path):
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def _whole_lines(content: bytes) -> tuple[list[bytes], int]:
    """Return the lines that end in a newline, and their length together."""
    length = content.rfind(b"\n") + 1
    return content[:length].splitlines(), length


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("kind") not in ("header", "evaluation", "stop"):
        raise _damaged(path, f"line {number} that is no record")
    return record


def _evaluation(path: Path, number: int, record: dict[str, Any]) -> Evaluation:
    fields = {name: value for name, value in record.items() if name != "kind"}
    try:
        return Evaluation(**{**fields, "parents": tuple(fields["parents"])})
    except (KeyError, TypeError):
        raise _damaged(path, f"line {number} with other fields") from None


def _damaged(path: Path, got: str) -> ArtifactError:
    return ArtifactError(str(path), got, "a search log as it was written", "Restore it, or move it away to start anew.")
