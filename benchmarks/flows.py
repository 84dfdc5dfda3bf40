"""Measures `dvc repro` plain, in the warm worker, and under the Prefect flow, cold and with nothing to do.

    python -m benchmarks.flows            # the default grid of this project, in a copy
    python -m benchmarks.flows --tiny     # a tiny random model, as in the tests
    python -m benchmarks.flows --noop     # only: nothing to do, with 20, 60 and 150 stage instances
    python -m benchmarks.flows --batching # only: 6 methods x 3 sparsities, few tokens, in separate processes and warm
    python -m benchmarks.flows --start    # only: a stage that imports what stages import and does nothing

Overhead per instance is the wall time less what the stages say they worked (data/costs), start-up apart, divided by
the number of instances; where several run at a time it is not given.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from flows._api import TemporaryApi
from warm.libraries import LIBRARIES
from warm.worker import Worker
from zpruner.runtime.machine import cores

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
SIZES = (20, 60, 150)
UNITS = "(in brackets: processor seconds)"
METHODS = {
    name: {"score": name.partition("_")[0], "group": group}
    for group, names in {"layer": ("magnitude", "ria", "zpruner", "wanda_layer"), "row": ("wanda", "ria_row")}.items()
    for name in names
}
SPARSITIES = {"s50": 0.5, "s60": 0.6, "s24": "2:4"}
CALIBRATION = {"nsamples": 4, "seqlen": 128, "gram": False}
EVALUATION = {"windows": 2, "seqlen": 128, "divergence": 0}


def environment(**variables: str) -> dict[str, str]:
    path = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(ROOT)} | variables


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock, and of the processor: what else a machine does shows in the first only."""

    wall: float
    processor: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} ({self.processor:.1f})"


def processor_seconds() -> float:
    """Return what the children that have ended took, and theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def seconds(command: list[str], root: Path, **variables: str) -> Cost:
    begun, before = time.perf_counter(), processor_seconds()
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = subprocess.run(command, cwd=root, env=environment(**variables), text=True, check=False, **output)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-3000:]}")
    cost = Cost(time.perf_counter() - begun, processor_seconds() - before)
    print(f"{cost}: {' '.join(command)} in {root.name}", file=sys.stderr, flush=True)
    return cost


def copy_project(folder: Path, tiny: bool) -> Path:
    """Make a project in which nothing has run; downloads are kept, so that no network is measured."""
    if tiny:
        sys.path.insert(0, str(ROOT / "tests"))
        from tiny import make_project

        return make_project(folder)
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith(".dvc/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if (ROOT / "data" / ".downloads").is_dir():
        shutil.copytree(ROOT / "data" / ".downloads", folder / "data" / ".downloads", copy_function=os.link)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        seconds(command, folder)
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    return folder


def worked(root: Path) -> tuple[float, int]:
    """Return the seconds that the stages worked, and how many instances there are."""
    costs = [json.loads(path.read_text()) for path in (root / "data" / "costs").rglob("*.json")]
    return sum(cost["seconds"] for cost in costs), len(costs) + 1  # the report's cost is not recorded


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zpruner-benchmark-") as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        yield Path(folder)


def measure_grid(tiny: bool, parallel: int) -> Table:
    table = Table("", "cold, s", "again, s", "overhead per instance, s", title=f"The whole grid {UNITS}")
    modes = {
        "dvc repro": ["dvc", "repro"],
        "dvc repro in the warm worker": [PYTHON, "-m", "warm", "dvc", "repro"],
        "flow, one at a time": [PYTHON, "-m", "flows.pipeline"],
        f"flow, {parallel} at a time": [PYTHON, "-m", "flows.pipeline", "--parallel", str(parallel)],
        "flow, one at a time, server running": [PYTHON, "-m", "flows.pipeline"],
    }
    with scratch() as folder:
        server = TemporaryApi()
        server.wait()  # also makes Prefect's database, once
        for index, (name, command) in enumerate(modes.items()):
            root = copy_project(folder / f"p{index}", tiny)
            variables = {"PREFECT_API_URL": server.url} if "server" in name else {}
            cold, again = seconds(command, root, **variables), seconds(command, root, **variables)
            work, instances = worked(root)
            overhead = "" if command[-1] == str(parallel) else f"{(cold.wall - work) / instances:.2f}"
            table.add_row(name, str(cold), str(again), overhead)
            table.caption = f"{instances} instances, {work:.0f} s of work (last run), {cores()} cores"
            shutil.rmtree(root)
        server.close()
    return table


def measure_batching() -> Table:
    """Measure how much of a grid of small instances is start-up that one warm process pays once."""
    table = Table("", "cold, s", "work, s", "per instance beside it, s", title=f"6 methods x 3 sparsities {UNITS}")
    modes = {
        "dvc repro: a process per instance": ["dvc", "repro"],
        "dvc repro in the warm worker": [PYTHON, "-m", "warm", "dvc", "repro"],
        "flow, one at a time": [PYTHON, "-m", "flows.pipeline"],
        f"flow, {cores()} at a time": [PYTHON, "-m", "flows.pipeline", "--parallel", "0"],
    }
    yaml = YAML()
    with scratch() as folder:
        for index, (name, command) in enumerate(modes.items()):
            root = copy_project(folder / f"p{index}", tiny=False)
            params = yaml.load(root / "params.yaml")
            params["methods"], params["sparsities"] = METHODS, SPARSITIES
            params["calibration"] |= CALIBRATION
            params["evaluation"]["perplexity"] |= EVALUATION
            yaml.dump(params, root / "params.yaml")
            cold = seconds(command, root)
            work, instances = worked(root)
            beside = "" if command[-1] == "0" else f"{(cold.wall - work) / instances:.2f}"
            table.add_row(name, str(cold), f"{work:.1f}", beside)
            table.caption = f"{instances} instances, {cores()} cores"
            shutil.rmtree(root)
    return table


def measure_start(runs: int = 15) -> Table:
    """Measure starting a stage: in its own process, and forked from the warm worker, in turns."""
    table = Table("", "median, s", "least, s", title="A stage that does nothing")
    with scratch() as root:
        (root / "stages").mkdir()
        (root / "stages" / "__init__.py").touch()
        (root / "stages" / "nothing.py").write_text("".join(f"import {name}\n" for name in LIBRARIES))
        command = ["/bin/sh", "-c", "python -m stages.nothing"]
        with Worker(root, LIBRARIES, environment()) as worker:
            path = worker.environment["PATH"]
            first = seconds(command, root, PATH=path)
            costs: dict[str, list[Cost]] = {"its own process": [], "forked from the warm worker": []}
            for _ in range(runs):
                costs["its own process"].append(seconds(command, root))
                costs["forked from the warm worker"].append(seconds(command, root, PATH=path))
    for name, all_ in costs.items():
        walls = sorted(cost.wall for cost in all_)  # the processor's time of a fork is the worker's
        table.add_row(name, f"{walls[runs // 2]:.2f}", f"{walls[0]:.2f}")
    table.caption = f"the first, which waits for the worker's imports: {first.wall:.1f} s"
    return table


def chain(folder: Path, instances: int) -> Path:
    """Make a project of `instances` stages that are up to date: thirds that need one another, as in a grid."""
    rows = instances // 3
    stages = {}
    for row in range(rows):
        for column, name in enumerate(("first", "second", "third")):
            above = [f"data/{('first', 'second')[column - 1]}/{row}.txt"] if column else []
            out = f"data/{name}/{row}.txt"
            stages[f"{name}_{row}"] = {"cmd": f"echo {row} > {out}", "deps": ["input.txt", *above], "outs": [out]}
            (folder / out).parent.mkdir(parents=True, exist_ok=True)
            (folder / out).write_text(f"{name} {row}\n")
    while len(stages) < instances:
        stages[f"more_{len(stages)}"] = {"cmd": "true", "deps": ["input.txt"]}
    (folder / "input.txt").write_text("x\n")
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    (folder / "params.yaml").write_text(json.dumps({"model": {"source": "none"}}))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "--force"]):
        seconds(command, folder)
    return folder


def measure_nothing_to_do() -> Table:
    table = Table("instances", "dvc repro, s", "flow, s", "flow, server running, s", title=f"Nothing to do {UNITS}")
    flow = [PYTHON, "-m", "flows.pipeline"]
    with scratch() as folder:
        server = TemporaryApi()
        server.wait()
        for size in SIZES:
            root = chain(folder / str(size), size)
            times = [seconds(["dvc", "repro"], root), seconds(flow, root)]
            times.append(seconds(flow, root, PREFECT_API_URL=server.url))
            table.add_row(str(size), *map(str, times))
        server.close()
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny random model instead of the default one")
    parser.add_argument("--noop", action="store_true", help="only with nothing to do")
    parser.add_argument("--batching", action="store_true", help="only 6 methods x 3 sparsities on few tokens")
    parser.add_argument("--start", action="store_true", help="only the start of a stage")
    parser.add_argument("--parallel", type=int, default=cores(), help="instances at a time")
    options = parser.parse_args()
    console = Console()
    if options.start:
        console.print(measure_start())
        return
    if options.batching:
        console.print(measure_batching())
        return
    if not options.noop:
        console.print(measure_grid(options.tiny, options.parallel))
    console.print(measure_nothing_to_do())


if __name__ == "__main__":
    main()
