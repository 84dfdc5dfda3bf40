"""SparseGPT and the joint least-squares update against the plain published loop, on the default model's own layers.

    python benchmarks/solvers.py

The plain loop (benchmarks/published.py) is written from the paper (arXiv 2301.00774, algorithm 1): Hessian, inverse
Cholesky factor, columns in blocks of 128, one column at a time, a full sort per block for the threshold. Ours is the
`sparsegpt` score (the mask) and the `obs` update (the weights), which the pipeline runs one after the other. Needs
`dvc repro calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Annotated

import published
import torch
import typer
from torch import Tensor

from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.evaluate import layer_error
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.types import LayerStats, SparsityPattern
from zpruner.updates.least_squares import LeastSquares
from zpruner.updates.obs import Obs


def seconds(run: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """Return the best of `repeats` wall-clock times, and the result."""
    best, result = float("inf"), torch.empty(0)
    for _ in range(repeats):
        start = perf_counter()
        result = run()
        best = min(best, perf_counter() - start)
    return best, result


def main(block: int = 10, repeats: Annotated[int, typer.Option(help="The best of so many runs counts.")] = 5) -> None:
    """Print milliseconds and ratios for three layers of one decoder block."""
    activations, dense = Activations(Path("data/activations/dense")), Checkpoint(Path("data/models/dense"))
    kinds = ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj")
    print("| layer (out x in) | pattern | plain loop | ours: mask | + weights | mask + weights / plain "
          "| least squares | / plain | / (mask + weights) | error plain, ours, l.s. |")  # fmt: skip
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|---|")
    totals = torch.zeros(4)
    for layer in (found for found in activations.layers if found.block == block and found.kind in kinds):
        weight, stats = dense.read_weight(layer).float(), activations.stats(layer.name)
        for text in ("0.5", "2:4"):
            times = compare(weight, stats, SparsityPattern.parse(text), text, repeats)
            totals += torch.tensor(times)
    plain, mask, weights, squares = totals.tolist()
    print(f"\nsum: ours / plain loop {(mask + weights) / plain:.2f}, mask alone / plain loop {mask / plain:.2f}, "
          f"least squares / our SparseGPT {squares / (mask + weights):.2f}, / plain loop {squares / plain:.2f} "
          f"({torch.get_num_threads()} threads)")  # fmt: skip


def compare(
    weight: Tensor, stats: LayerStats, pattern: SparsityPattern, text: str, repeats: int
) -> tuple[float, float, float, float]:
    """Print one row and return its four times in seconds."""
    gram = stats.gram
    assert gram is not None
    solver, obs, squares = SparseGPT(), Obs(), LeastSquares()
    plain, theirs = seconds(lambda: published.sparsegpt(weight, gram, pattern), repeats)
    mask, found = seconds(lambda: solver.solve(weight, stats, pattern), repeats)
    keep = found.keep
    update, ours = seconds(lambda: obs.update(weight, keep, stats), repeats)
    joint, solved = seconds(lambda: squares.update(weight, keep, stats), repeats)
    errors = ", ".join(f"{layer_error(weight, result, stats):.5f}" for result in (theirs, ours, solved))
    out, width = weight.shape
    print(f"| {out} x {width} | {text} | {plain * 1e3:.0f} ms | {mask * 1e3:.0f} ms | {update * 1e3:.0f} ms "
          f"| {(mask + update) / plain:.2f} | {joint * 1e3:.0f} ms | {joint / plain:.2f} "
          f"| {joint / (mask + update):.2f} | {errors} |")  # fmt: skip
    return plain, mask, update, joint


if __name__ == "__main__":
    typer.run(main)
