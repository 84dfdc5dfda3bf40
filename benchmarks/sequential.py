"""What sequential pruning costs, as a multiple of two forward passes of the decoder: one to measure, one to continue.

    python benchmarks/sequential.py --windows 8 --methods wanda,sparsegpt,best

Processor time, in turns in one process, the least of several rounds. Needs `dvc repro calibrate` to have run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Annotated

import torch
import typer

import zpruner
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows


def main(
    model: Path = Path("data/models/dense"),
    windows: Path = Path("data/calibration/tokens.arrow"),
    count: Annotated[int, typer.Option(help="Calibration windows.")] = 8,
    methods: str = "wanda,sparsegpt,best",
    measure: Annotated[str, typer.Option(help="block or submodule.")] = "block",
    sparsity: str = "0.5",
    rounds: int = 2,
) -> None:
    """Print one row per method."""
    network, _ = zpruner.load(model)
    ids = read_windows(windows)[0][:count]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    best: dict[str, float] = defaultdict(lambda: float("inf"))

    def timed(name: str, call: Callable[[], object]) -> None:
        start = process_time()
        call()
        best[name] = min(best[name], process_time() - start)

    def forward() -> None:
        with torch.no_grad():
            for batch in ids.split(8):
                network.base_model(input_ids=batch.long(), use_cache=False)

    def prune(name: str) -> None:
        method = {**PRESETS[name], "measure": measure}
        zpruner.prune_sequentially(network, ids, method=method, sparsity=sparsity)

    for _ in range(rounds):
        timed("forward", forward)
        for name in methods.split(","):
            timed(name, lambda name=name: prune(name))
            with torch.no_grad():
                network.load_state_dict(state)
    print(f"| method | seconds | two forward passes ({2 * best['forward']:.1f} s) | SparseGPT |\n|---|--:|--:|--:|")
    for name in methods.split(","):
        solver = best.get("sparsegpt", float("nan"))
        print(f"| {name} | {best[name]:.1f} | {best[name] / 2 / best['forward']:.2f} | {best[name] / solver:.2f} |")


if __name__ == "__main__":
    typer.run(main)
