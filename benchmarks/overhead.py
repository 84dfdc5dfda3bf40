"""What DVC and the start of stages cost per stage instance, in one checkout of this repository or several in turns.

    python -m benchmarks.overhead . ../before --sizes 20,60,150

Each checkout makes a project of its own with a tiny random model and one grid of methods and sparsities, runs it from
nothing in the warm worker, and then twice with nothing to do. Processor seconds, which say more than the clock on a
machine that others use too; those of a run from nothing hold the work on the tiny model.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

METHODS = {
    name: {"score": name.partition("_")[0], "group": group}
    for group, names in {"layer": ("magnitude", "ria", "zpruner", "wanda_layer"), "row": ("wanda", "ria_row")}.items()
    for name in names
}
GRIDS = {20: (1, 3), 60: (4, 3), 150: (6, 6)}
"""About how many stage instances -> methods and sparsities."""
MAKE = """
import sys; from pathlib import Path; sys.path.insert(0, "tests")
import tiny; tiny.make_project(Path(sys.argv[1]))
"""


def run(tree: Path, where: Path, *command: str) -> tuple[float, float, str]:
    """Run a command of a checkout; returns seconds by the clock, processor seconds, and what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    changes = {"PATH": path, "PYTHONPATH": str(tree), "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=where, env=os.environ | changes, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{' '.join(command)} in {where} exited {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def project(tree: Path, root: Path, methods: int, sparsities: int) -> Path:
    """Make a project of a checkout's code with a grid of that size."""
    run(tree, tree, sys.executable, "-c", MAKE, str(root))
    params = json.loads((root / "params.yaml").read_text())
    params["methods"] = dict(list(METHODS.items())[:methods])
    params["sparsities"] = {f"s{10 * (n + 1)}": (n + 1) / 10 for n in range(sparsities)}
    (root / "params.yaml").write_text(json.dumps(params))
    return root


def worker(tree: Path) -> str:
    """Return the module that keeps a warm worker for a command."""
    return "warm" if (tree / "warm").is_dir() else "flows.worker"


def main(
    trees: Annotated[list[Path], typer.Argument(help="Checkouts of this repository.")],
    sizes: Annotated[str, typer.Option(help="About how many stage instances, of 20, 60, 150.")] = "20,60,150",
    repeats: Annotated[int, typer.Option(help="Runs with nothing to do.")] = 3,
) -> None:
    """Print one row per size and checkout."""
    columns = ("checkout", "instances", "from nothing, s", "per instance, s", "nothing to do, s", "dvc.lock, lines")
    table = Table(*columns, title="processor seconds (in brackets: by the clock)")
    with tempfile.TemporaryDirectory(prefix="zpruner-overhead-") as folder:
        for size in map(int, sizes.split(",")):
            roots = {
                tree.resolve(): project(tree.resolve(), Path(folder) / f"{size}-{n}", *GRIDS[size])
                for n, tree in enumerate(trees)
            }
            cold = {t: run(t, root, sys.executable, "-m", worker(t), "dvc", "repro") for t, root in roots.items()}
            idle: dict[Path, list[tuple[float, float]]] = {tree: [] for tree in roots}
            for _ in range(repeats):
                for tree, root in roots.items():
                    idle[tree].append(run(tree, root, "dvc", "repro")[:2])
            for tree, root in roots.items():
                wall, processor, said = cold[tree]
                count = said.count("Running stage '")
                clock, least = (min(found) for found in zip(*idle[tree], strict=True))
                lines = len((root / "dvc.lock").read_text().splitlines())
                row = (f"{processor:.0f} ({wall:.0f})", f"{processor / count:.2f} ({wall / count:.2f})")
                table.add_row(tree.name, str(count), *row, f"{least:.1f} ({clock:.1f})", str(lines))
                Console().print(f"{size} {tree.name}: {count} {row} {least:.1f} ({clock:.1f}) {lines}", style="dim")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
