"""What the pipeline costs on the default model: every stage, one Z-Pruner variant from zero, a second sparsity.

    python benchmarks/pipeline.py

Runs in a temporary project beside the repository's own model and texts (run `make repro` first). Each stage runs in a
forked child of a process that has imported everything, so that start-up is left out and peak memory is the stage's
own. The yardstick is measured in the same run: one plain forward pass over the calibration windows, plus reading and
writing the checkpoint once.

Everything is measured `--rounds` times and the least counts. Beside the seconds on the wall stand those of the
processor, which other work on the machine changes little: on a busy machine the second ratio is the one that tells.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import torch
import transformers.models.auto.modeling_auto
import typer
from ruamel.yaml import YAML

from stages import apply, calibrate, evaluate, mask, score
from zpruner.model import load_model
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.text import read_windows

assert transformers.models.auto.modeling_auto  # imported here, so that no stage pays for it


@dataclass(frozen=True)
class Measured:
    """Seconds on the wall and of the processor, and peak resident memory in bytes, of a forked child."""

    seconds: float
    cpu: float
    peak: int

    def __or__(self, other: Measured) -> Measured:
        """Return the least of both."""
        return Measured(min(self.seconds, other.seconds), min(self.cpu, other.cpu), min(self.peak, other.peak))

    def __add__(self, other: Measured) -> Measured:
        """Return what both take, one after the other."""
        return Measured(self.seconds + other.seconds, self.cpu + other.cpu, max(self.peak, other.peak))


def measure(work: Callable[[], None]) -> Measured:
    """Run `work` in a forked child and return what it took."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        keep_freed_memory()
        wall, cpu = perf_counter(), process_time()
        work()
        took = [perf_counter() - wall, process_time() - cpu]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        os.write(writing, json.dumps([*took, peak]).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as result:
        text = result.read()
    if os.waitpid(child, 0)[1]:
        raise SystemExit("a stage failed")
    return Measured(*json.loads(text))


def yardstick(root: Path) -> tuple[Measured, Measured]:
    """Return a forward pass over the calibration windows, and reading and writing the checkpoint once."""
    model_folder = root / "data/models/dense"

    def load() -> None:
        load_model(model_folder)

    def forward() -> None:
        model = load_model(model_folder)
        windows, _ = read_windows(root / "data/calibration/tokens.arrow")
        with torch.no_grad():
            for batch in windows.split(8):
                model(input_ids=batch.to(model.device, torch.long), use_cache=False)

    def copy() -> None:
        load_model(model_folder).save_pretrained(root / "copy")

    whole, loading, copying = measure(forward), measure(load), measure(copy)
    return Measured(whole.seconds - loading.seconds, whole.cpu - loading.cpu, whole.peak), copying


def main(
    method: Annotated[str, typer.Option()] = "zpruner",
    gram: Annotated[bool | None, typer.Option(help="Collect Gram matrices; default: as in params.yaml.")] = None,
    rounds: Annotated[int, typer.Option(help="How often everything is measured; the least counts.")] = 2,
    evaluation: Annotated[bool, typer.Option(help="Measure the evaluation, too.")] = True,
) -> None:
    """Print the table."""
    first, second = "s50", "s24"
    with tempfile.TemporaryDirectory(dir=".", prefix=".benchmark-") as folder:
        root = Path(folder)
        params = YAML(typ="safe", pure=True).load(Path("params.yaml"))
        if gram is not None:
            params["calibration"]["gram"] = gram
        (root / "params.yaml").write_text(json.dumps(params))
        for name in ("models/dense", "calibration/tokens.arrow", "evaluation/tokens.arrow"):
            source, target = Path("data") / name, root / "data" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        stages = {
            "calibrate": lambda: calibrate.run(root=root),
            f"score {method}": lambda: score.run(method, root=root),
            f"mask {first}": lambda: mask.run(method, first, root=root),
            f"apply {first}": lambda: apply.run(method, first, root=root),
            f"mask {second}": lambda: mask.run(method, second, root=root),
            f"apply {second}": lambda: apply.run(method, second, root=root),
        }
        if evaluation:
            stages[f"evaluate {first}"] = lambda: evaluate.run(method, first, root=root)
        took: dict[str, Measured] = {}
        for _ in range(rounds):
            shutil.rmtree(root / "data/.work", ignore_errors=True)  # else finished layers are taken from there
            forward, copying = yardstick(root)
            found = {"forward pass over the windows": forward, "read and write the checkpoint": copying}
            found |= {name: measure(work) for name, work in stages.items()}
            took = {name: measured | took.get(name, measured) for name, measured in found.items()}
    print(f"\n| step | seconds | processor seconds | peak memory |\n|---|--:|--:|--:|{rows(took)}")
    yard = took["forward pass over the windows"] + took["read and write the checkpoint"]
    zero = reduce(add, (took[n] for n in ("calibrate", f"score {method}", f"mask {first}", f"apply {first}")))
    more = took[f"mask {second}"] + took[f"apply {second}"]
    print(
        f"| **{method} from zero, evaluation apart** | **{zero.seconds:.1f}** | **{zero.cpu:.1f}** | "
        f"{zero.seconds / yard.seconds:.2f} x (processor {zero.cpu / yard.cpu:.2f} x) forward + read + write |"
    )
    print(
        f"| **a second sparsity, evaluation apart** | **{more.seconds:.1f}** | **{more.cpu:.1f}** | "
        f"{more.seconds / zero.seconds:.1%} (processor {more.cpu / zero.cpu:.1%}) of from zero |"
    )
    print(f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, best of {rounds}, ", end="")
    print(f"Gram matrices: {params['calibration']['gram']}")


def rows(took: dict[str, Measured]) -> str:
    """Return the rows of the table."""
    return "".join(f"\n| {name} | {m.seconds:.1f} | {m.cpu:.1f} | {m.peak / 1e9:.2f} GB |" for name, m in took.items())


if __name__ == "__main__":
    typer.run(main)
