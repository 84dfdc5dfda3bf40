"""What a stage prints becomes lines of a log, and tells whether trying again makes sense."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flows import instance
from flows.instance import OutOfMemoryStageError, PassingStageError, Place, StageError, failure, run
from warm.worker import Worker

BARS = """
import sys
print("first", flush=True)
for done in (0, 40, 80, 100):
    print(f"\\r{done:3}%|###  | {done}/100", end="", file=sys.stderr, flush=True)
print(file=sys.stderr)
print("no newline at the end", end="")
sys.exit(3)
"""


def test_lines_of_a_child_and_its_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bars.py").write_text(BARS)
    found: dict[float, list[str]] = {}
    with Worker(tmp_path, (), launcher=False) as worker:
        place = Place(worker.socket, worker.environment, str(tmp_path))
        for seconds in (0.0, 1000.0):  # how often a bar is worth a line
            monkeypatch.setattr(instance, "PROGRESS_SECONDS", seconds)
            found[seconds] = []
            assert run(place, ["-m", "bars"], {}, found[seconds].append) == 3
    bars = [f"{done:3}%|###  | {done}/100" for done in (40, 80, 100)]  # the one that has just begun says nothing
    assert set(found[0.0]) == {"first", *bars, "no newline at the end"}
    assert [line for line in found[0.0] if line in bars] == bars
    assert set(found[1000.0]) == {"first", bars[-1], "no newline at the end"}


@pytest.mark.parametrize(
    ("status", "output", "expected"),
    [
        (1, "ERROR: Unable to acquire lock. Most likely another DVC process is running", PassingStageError),
        (255, "ERROR: '/p/dvc.yaml' is busy, it is being blocked by:", PassingStageError),
        (1, "requests.exceptions.ConnectionError: Connection reset by peer", PassingStageError),
        (1, "HfHubHTTPError: 502 Server Error: Bad Gateway for url: https://h", PassingStageError),
        (1, "ERROR: An error occurred (503) when calling the PutObject operation: Slow Down", PassingStageError),
        (1, "urllib3: https://h answered with HTTP 504", PassingStageError),
        (1, "status code: 503", PassingStageError),
        (1, "error: calibration text: got 502 tokens, expected 4096. Use a longer one.", StageError),
        (1, "ValueError: shape (503, 504) of 502 rows", StageError),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", OutOfMemoryStageError),
        (
            255,
            "ERROR: failed to reproduce 'mask': failed to run: python -m stages.mask, exited with -9",
            OutOfMemoryStageError,
        ),
        (-9, "", OutOfMemoryStageError),
        (137, "nothing said", OutOfMemoryStageError),
        (1, "error: params.yaml: got 3, expected 4. Change it.", StageError),
        (1, "ValueError: 500 is not below 100", StageError),
        (1, "ERROR: failed to reproduce 'mask': failed to run: python -m stages.mask, exited with 1", StageError),
    ],
)
def test_kinds_of_failure(status: int, output: str, expected: type[StageError]) -> None:
    error = failure("mask@wanda-s50", status, f"a line before\n{output}")
    assert type(error) is expected
    assert str(error).startswith(f"mask@wanda-s50 failed (exit status {status})")
    assert output in str(error)


def test_a_failure_shows_no_credentials() -> None:
    assert "pw" not in str(failure("fetch@model", 1, "error: no answer from https://me:pw@host/a?token=pw"))


def test_a_worker_that_has_ended_is_named(tmp_path: Path) -> None:
    with Worker(tmp_path, (), launcher=False) as worker:
        pass
    place = Place(worker.socket, worker.environment, str(tmp_path))
    with pytest.raises(StageError, match="the warm worker did not start it: no worker"):
        run(place, ["-m", "bars"], {}, lambda line: print(line, file=sys.stderr))
