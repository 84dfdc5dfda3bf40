"""Kills every stage with SIGKILL at chosen moments, runs it again, and compares with an undisturbed run.

Run as a script, so that the test's own process is never forked: `kill_driver.py FOLDER POINTS STAGE...` prints one
JSON object per stage. STAGE may be NAME:POINTS. Everything is imported once; each trial is a forked child.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import staged
import tiny
import torch

import stages._layers
import zpruner.artifacts.work
from zpruner.artifacts.files import HashingFile
from zpruner.artifacts.work import JOURNAL, Work
from zpruner.calibration import gradients
from zpruner.calibration.accumulate import InputAccumulator
from zpruner.packed import pack as packing
from zpruner.pruning.composition import Composition
from zpruner.pruning.presets import PRESETS
from zpruner.text import writing

# What a stage computes once per finished item, and how many of those an item of the journal stands for.
COUNTED: dict[str, tuple[Any, str]] = {
    "calibrate": (InputAccumulator, "add"),
    "gradients-wanted": (gradients, "_accumulating"),
    "generate-mixed": (writing, "_write"),
    "score": (Composition, "score"),
    "mask": (Composition, "mask"),
    "mask-propagated": (Composition, "prune"),
    "mask-best": (Composition, "prune"),
    "apply": (Composition, "apply"),
    "pack": (packing, "_pack_file"),
    "evaluate": (stages._layers, "layer_error"),
}


class Moments:
    """Counts the moments at which a process may die, and dies at the one asked for."""

    def __init__(self, fatal: int = -1) -> None:
        self.seen, self.fatal = 0, fatal
        self._one_at_a_time = threading.Lock()  # artifacts are written on several threads

    def pass_one(self, last_words: Callable[[], object] = lambda: None) -> None:
        with self._one_at_a_time:
            self.seen += 1
            if self.seen == self.fatal:
                last_words()
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)

    def install(self) -> None:
        """Wrap whatever changes the disk: a moment before and after each change, and one amid each write."""
        setattr(zpruner.artifacts.work, "_SYNCED", -1.0)  # as many moments however fast it runs  # noqa: B010
        self._around(os, "fsync")
        self._around(shutil, "rmtree")
        for name in ("replace", "hardlink_to", "unlink"):
            self._around(Path, name)
        write = HashingFile.write

        def half(file: HashingFile, data: Any) -> int:
            view = memoryview(data).cast("B")
            self.pass_one(lambda: (file._file.write(view[: len(view) // 2]), file._file.flush()))
            return write(file, data)

        setattr(HashingFile, "write", half)  # noqa: B010
        record = Work.record

        def torn(this: Work, item: str, *args: Any, **more: Any) -> None:
            self.pass_one(
                lambda: (this.folder / JOURNAL).open("a").write(json.dumps({"item": item, "file": None})[:-3])
            )
            record(this, item, *args, **more)
            self.pass_one()

        setattr(Work, "record", torn)  # noqa: B010

    def _around(self, owner: Any, name: str) -> None:
        wrapped = getattr(owner, name)

        def around(*args: Any, **more: Any) -> Any:
            self.pass_one()
            result = wrapped(*args, **more)
            self.pass_one()
            return result

        setattr(owner, name, around)


def forked(run: Callable[[], dict[str, Any] | None], answer: Path) -> dict[str, Any] | None:
    """Run in a forked child; returns what it returned, or None if it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            answer.write_text(json.dumps(run()))
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    assert os.WEXITSTATUS(status) == 0, "the child failed: see its traceback above"
    return json.loads(answer.read_text())


def counting(stage: str, instance: Callable[[Path], None], root: Path, moments: Moments) -> dict[str, Any]:
    """Run a stage in this process and return what it did."""
    calls, recorded = [0], []
    if stage in COUNTED:
        owner, name = COUNTED[stage]
        wrapped = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            return wrapped(*args, **more)

        setattr(owner, name, counted)
    moments.install()
    record = Work.record

    def noted(this: Work, item: str, *args: Any, **more: Any) -> None:
        recorded.append(named(this.name, item))
        record(this, item, *args, **more)

    setattr(Work, "record", noted)  # noqa: B010
    instance(root)
    return {"moments": moments.seen, "calls": calls[0], "recorded": recorded}


def whole_of(part: str) -> str:
    """Return the snapshot that an item such as part-snapshot-000002-0 belongs to."""
    return part.removeprefix("part-").rpartition("-")[0]


def named(work: str, item: str) -> str:
    """Return an item's name, in which weights and masks of a layer differ."""
    return f"solved:{item}" if work.startswith("solved-") else item


def finished_items(root: Path) -> list[str]:
    """Return the items that the journals of a killed run hold whole."""
    found = []
    for journal in (root / "data" / ".work").rglob(JOURNAL):
        for line in journal.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                found.append(named(journal.parent.parent.name, json.loads(line)["item"]))
    return found


def trials(folder: Path, stage: str, instance: Callable[[Path], None], before: Path, points: int) -> dict[str, Any]:
    """Kill `stage` at `points` moments spread over its run; every time it must end with the undisturbed bytes."""
    trial, answer = folder / "trial", folder / "answer.json"

    def fresh() -> None:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.copytree(before, trial)

    fresh()
    whole = forked(lambda: counting(stage, instance, trial, Moments()), answer)
    assert whole is not None
    expected, inputs = staged.artifacts(trial), staged.artifacts(before)
    count = whole["moments"]
    rng = random.Random(f"{stage} {points}")
    chosen = range(1, count + 1) if points >= count else sorted({1, count, *rng.sample(range(2, count), points - 2)})
    most_saved = 0
    for moment in chosen:
        where = f"{stage}, moment {moment} of {count}"
        fresh()
        assert forked(lambda m=moment: counting(stage, instance, trial, Moments(m)), answer) is None, where
        for name, data in staged.artifacts(trial).items():
            hidden = any(part.startswith(".") for part in Path(name).parts)
            assert hidden or expected[name] == data, f"{where}: {name} is half-written"
        finished = finished_items(trial)
        again = forked(lambda: counting(stage, instance, trial, Moments()), answer)
        assert again is not None
        result = staged.artifacts(trial)
        assert sorted(result) == sorted(expected), f"{where}: {set(result) ^ set(expected)}"
        different = [name for name in expected if result[name] != expected[name]]
        assert not different, f"{where}: other bytes in {different}"
        repeated = set(again["recorded"]) & set(finished)
        if stage in ("mask-propagated", "mask-best", "mask-tuned"):  # a layer's weight comes after its mask
            repeated = {item for item in repeated if item.startswith("solved:")}
        # Parts stand for nothing before their snapshot is whole.
        repeated = {item for item in repeated if not item.startswith("part-") or whole_of(item) in finished}
        assert not repeated, f"{where}: repeated {repeated}"
        assert again["calls"] <= whole["calls"] - saved_calls(stage, finished, whole["calls"]), (
            f"{where}: repeated work"
        )
        most_saved = max(most_saved, whole["calls"] - again["calls"])
    assert all(name in expected for name in inputs)
    return {"stage": stage, "moments": count, "tried": len(chosen), "calls": whole["calls"], "saved": most_saved}


def saved_calls(stage: str, finished: list[str], calls: int) -> int:
    """Return how many computations the finished items of a killed run make unnecessary."""
    layers = sum(item.startswith("model.layers.") for item in finished)
    match stage:
        case "score" | "mask" | "evaluate":
            return layers
        case "mask-propagated" | "mask-best":
            return sum(item.startswith("solved:") for item in finished)
        case "apply":
            return 7 * sum("00001" not in item for item in finished)
        case "pack" | "generate-mixed":
            return len(finished)
        case "calibrate" | "gradients-wanted":
            windows = max((int(i.removeprefix("snapshot-")) for i in finished if i.startswith("snapshot-")), default=0)
            return calls * windows // tiny.PARAMS["calibration"]["nsamples"]
        case _:
            return 0


def main(folder: Path, points: int, stages: list[str]) -> None:
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what stages say is none of the results
    torch.set_num_threads(1)
    pairs = [stage.partition(":") for stage in stages]
    wanted = {stage: int(own or points) for stage, _, own in pairs}
    tuned = {**PRESETS["best_tuned"], "tune": {"rate": 0.01}}
    roots = {
        "": staged.make(folder / "dense", packed=staged.PACKED),
        "-wanted": staged.make(folder / "wanted", methods={staged.METHOD: {"score": "pruner_zero"}}),
        "-mixed": staged.make(folder / "mixed", calibration={"source": ["self"], "nsamples": 9, "seqlen": 24}),
        "-propagated": staged.make(folder / "pruned", propagation="pruned", packed=staged.PACKED),
        "-best": staged.make(folder / "best", propagation="pruned", methods={staged.METHOD: PRESETS["best"]}),
        "-tuned": staged.make(folder / "tuned", propagation="pruned", methods={staged.METHOD: tuned}),
    }
    for suffix, root in roots.items():
        for name, instance in staged.INSTANCES.items():
            stage = f"{name}{suffix}"
            before = folder / "before"
            if stage in wanted:
                shutil.rmtree(before, ignore_errors=True)
                shutil.copytree(root, before)
                shutil.rmtree(before / "data" / ".work", ignore_errors=True)
            # The report draws with a library whose threads do not survive a fork; nothing needs its result.
            if name != "report" and (not suffix or any(want.endswith(suffix) for want in wanted)):
                instance(root)
            if stage in wanted:
                started = time.perf_counter()
                result = trials(folder, stage, instance, before, wanted[stage])
                print(
                    json.dumps(result | {"seconds": round(time.perf_counter() - started, 1)}), file=results, flush=True
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
