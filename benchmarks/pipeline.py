"""What the pipeline costs on the default model: every stage, one Z-Pruner variant from zero, a second sparsity.

    python benchmarks/pipeline.py

Runs in a temporary project beside the repository's own model and texts (run `make repro` first). Each stage runs in a
forked child of a process that has imported everything, so that start-up is left out and peak memory is the stage's
own. The yardstick is measured in the same run: one plain forward pass over the calibration windows, plus reading and
writing the checkpoint once.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import transformers.models.auto.modeling_auto
import typer
from ruamel.yaml import YAML

from stages import apply, calibrate, evaluate, mask, score
from zpruner.calibrate import read_windows
from zpruner.model import load_model

assert transformers.models.auto.modeling_auto  # imported here, so that no stage pays for it


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds and peak resident memory in bytes of a forked child."""

    seconds: float
    peak: int


def measure(work: Callable[[], None]) -> Measured:
    """Run `work` in a forked child and return what it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        start = perf_counter()
        work()
        took = perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writing, json.dumps([took, peak]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        text = result.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a stage failed")
    return Measured(*json.loads(text))


def yardstick(root: Path) -> tuple[Measured, Measured]:
    """Return a forward pass over the calibration windows, and reading and writing the checkpoint once."""

    def forward() -> None:
        model = load_model(root / "data/models/dense")
        windows, _ = read_windows(root / "data/calibration/tokens.arrow")
        start = perf_counter()
        with torch.no_grad():
            for batch in windows.split(8):
                model(input_ids=batch.to(model.device, torch.long), use_cache=False)
        print(f"forward pass alone: {perf_counter() - start:.2f} s")

    def load() -> None:
        load_model(root / "data/models/dense")

    def copy() -> None:
        model = load_model(root / "data/models/dense")
        model.save_pretrained(root / "copy")

    whole, loading, copying = measure(forward), measure(load), measure(copy)
    return Measured(whole.seconds - loading.seconds, whole.peak), copying


def main(method: Annotated[str, typer.Option()] = "zpruner", gram: bool = False) -> None:
    """Print the table. `--gram` collects Gram matrices too, which Z-Pruner does not need."""
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as folder:
        root = Path(folder)
        yaml = YAML(typ="safe", pure=True)
        params = yaml.load(Path("params.yaml"))
        params["calibration"]["gram"] = gram
        (root / "params.yaml").write_text(json.dumps(params))
        for name in ("models/dense", "calibration/tokens.arrow", "evaluation/tokens.arrow"):
            source, target = Path("data") / name, root / "data" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        forward, copying = yardstick(root)
        first, second = "s50", "s24"
        stages = {
            "calibrate": lambda: calibrate.run(root=root),
            f"score {method}": lambda: score.run(method, root=root),
            f"mask {first}": lambda: mask.run(method, first, root=root),
            f"apply {first}": lambda: apply.run(method, first, root=root),
            f"evaluate {first}": lambda: evaluate.run(method, first, root=root),
            f"mask {second}": lambda: mask.run(method, second, root=root),
            f"apply {second}": lambda: apply.run(method, second, root=root),
        }
        took = {name: measure(work) for name, work in stages.items()}
    base = forward.seconds + copying.seconds
    zero = sum(m.seconds for n, m in took.items() if second not in n and "evaluate" not in n)
    more = sum(m.seconds for n, m in took.items() if second in n)
    print(f"\n| step | seconds | peak memory |\n|---|--:|--:|\n{row('forward pass over the windows', forward)}")
    print(row("read and write the checkpoint", copying))
    for name, measured in took.items():
        print(row(name, measured))
    print(f"| **{method} from zero, evaluation apart** | **{zero:.1f}** | {zero / base:.2f} x forward + read + write |")
    print(f"| **a second sparsity, evaluation apart** | **{more:.1f}** | {100 * more / zero:.0f} % of from zero |")
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, Gram matrices: {gram}")


def row(name: str, measured: Measured) -> str:
    """Return a row of the table."""
    return f"| {name} | {measured.seconds:.1f} | {measured.peak / 1e9:.2f} GB |"


if __name__ == "__main__":
    typer.run(main)
