"""The search log: an append-only JSONL file, one line per evaluation, from which a search resumes exactly."""

from __future__ import annotations

import fcntl
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from zpruner.artifacts.files import digest_of, read_artifact
from zpruner.artifacts.sealed_lines import read_lines, seal_line
from zpruner.errors import ArtifactError, LockedError, mend
from zpruner.runtime.system_errors import system_errors_named

FORMAT = 3
COMMAND = "dvc repro search/dvc.yaml"
_HEAD = b'{"kind": "header"'


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


class _Header(TypedDict):
    kind: Literal["header"]
    format: Literal[3]
    settings: dict[str, Any]
    context: str


_HEADER, _EVALUATION = TypeAdapter(_Header), TypeAdapter(Evaluation)


@dataclass(frozen=True)
class SearchLog:
    """What a log file says: settings without budgets, what the fitness depends on, the evaluations in order."""

    settings: dict[str, Any]
    context: str
    evaluations: tuple[Evaluation, ...]
    stopped: str | None
    """Why the last run ended by itself: generations, evaluations, seconds or exhausted; None if interrupted."""


def read_log(path: Path) -> SearchLog:
    """Read the log of a search that may continue; what is torn at its end is left out.

    Raises:
        ArtifactError: no log, or another format.
    """
    return _parse(path, _read(path))[0]


def read_finished_log(path: Path) -> SearchLog:
    """Read the log of a search that ended.

    Raises:
        ArtifactError: no log, another format, altered or truncated.
    """
    content = _read(path)
    log, length, _ = _parse(path, content)
    if length < len(content) or log.stopped is None:
        raise ArtifactError(str(path), "an altered or truncated log", "a finished search log", mend(COMMAND))
    return log


class LogWriter:
    """The log of a running search: what is recorded, and appending to it. Use as a context manager.

    Args:
        path: the file; created with its header where missing or empty.
        settings: what decides the order of the formulas.
        context: what the fitness depends on (model, texts, sparsities), in the caller's words.

    Raises:
        ArtifactError: the file is the log of other settings or another context, or no log. A line that is not what was
            written, and all after it, are dropped.
        LockedError: another process appends to it.
    """

    def __init__(self, path: Path, settings: dict[str, object], context: str) -> None:
        self.path, self._settings, self._context = path, settings, context
        self.recorded: tuple[Evaluation, ...] = ()
        self._stopped: str | None = None
        self._seal = ""
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
        content = self._file.read()
        if _HEAD.startswith(content[: len(_HEAD)]) and b"\n" not in content:  # new, or torn in its first line
            self._file.truncate(0)
            header = {"kind": "header", "format": FORMAT, "settings": self._settings, "context": self._context}
            self._write({**header, "digest": digest_of([self._settings, self._context])})
            return
        log, length, self._seal = _parse(self.path, content)
        self._file.truncate(length)
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
        line, self._seal = seal_line(record, self._seal)
        with system_errors_named(self.path):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())


def _read(path: Path) -> bytes:
    return read_artifact(path, f"a search log of format {FORMAT}", COMMAND)


def _parse(path: Path, content: bytes) -> tuple[SearchLog, int, str]:
    """Return what the whole lines say, their length together, and the last seal."""
    records, length, seal = read_lines(content, "")
    evaluations: list[Evaluation] = []
    stopped: str | None = None
    try:
        header = _HEADER.validate_python(next(iter(records), {}))
        for record in records[1:]:
            stopped = record["reason"] if record["kind"] == "stop" else None
            if record["kind"] == "evaluation":
                evaluations.append(_EVALUATION.validate_python({k: v for k, v in record.items() if k != "kind"}))
                if evaluations[-1].index != len(evaluations) - 1:
                    raise ValueError(f"evaluation {evaluations[-1].index} at place {len(evaluations) - 1}")
    except (ValueError, KeyError) as error:
        got = f"no log of this version ({str(error).splitlines()[0]})" if records else "no header of a search log"
        action = "Move it away, and start the search anew."
        raise ArtifactError(str(path), got, f"a search log of format {FORMAT}", action) from None
    return SearchLog(header["settings"], header["context"], tuple(evaluations), stopped), length, seal
