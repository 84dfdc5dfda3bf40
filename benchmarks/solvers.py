"""SparseGPT and the joint least-squares update against the plain published loop, on the default model's own layers.

    python benchmarks/solvers.py
    python benchmarks/solvers.py --drawn 896x4864   # `best` against SparseGPT, on a layer that is drawn

The plain loop (benchmarks/published.py) is written from the paper (arXiv 2301.00774, algorithm 1): Hessian, inverse
Cholesky factor, columns in blocks of 128, one column at a time, a full sort per block for the threshold. Ours is the
`sparsegpt` score (the mask) and the `obs` update (the weights), which the pipeline runs one after the other. Needs
`dvc repro calibrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import published
import torch
import typer
from torch import Tensor

from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.evaluate import layer_error
from zpruner.methods.admm import Admm
from zpruner.methods.sparsegpt import SparseGPT
from zpruner.runtime.products import add_matmul
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


def main(
    block: int = 10,
    repeats: Annotated[int, typer.Option(help="The best of so many runs counts.")] = 5,
    drawn: Annotated[str | None, typer.Option(help="OUTxIN of a layer that is drawn, in place of the model's.")] = None,
) -> None:
    """Print milliseconds and ratios for three layers of one decoder block, or for one that is drawn."""
    if drawn is not None:
        compare_best(*(int(number) for number in drawn.split("x")), repeats)
        return
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


def compare_best(out: int, width: int, repeats: int) -> None:
    """Print processor seconds of SparseGPT and of the two parts of `best` at 50 %, in turns, on 8,192 tokens.

    Inputs have a falling spectrum, some loud channels, and tokens of unequal size.
    """
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(width // 8, width, generator=generator) / 4
    half, whole = torch.zeros(width, width), torch.zeros(width, width)
    loud = torch.randn(width, generator=generator).exp()
    for part in range(8):
        tokens = torch.randn(1024, width // 8, generator=generator) @ common
        tokens = (tokens + torch.randn(1024, width, generator=generator)).mul_(loud)
        add_matmul(whole, tokens.T, tokens)
        if part == 3:
            half.copy_(whole)
    weight = torch.randn(out, width, generator=generator)
    stats = LayerStats("drawn", 8192, 16, gram=whole, gram_half=half, effect=torch.rand(out, generator=generator))
    settings = {"damping": 0.1, "shrinkage": "auto"}
    pattern, best = SparsityPattern.parse("0.5"), [float("inf")] * 3
    for _ in range(repeats):
        times = [process_time()]
        SparseGPT().solve(weight, stats, pattern)
        times.append(process_time())
        keep = Admm.model_validate({**settings, "effect": 0.5}).solve(weight, stats, pattern).keep
        times.append(process_time())
        LeastSquares.model_validate(settings).update(weight, keep, stats)
        times.append(process_time())
        best = [min(pair) for pair in zip(best, (b - a for a, b in pairwise(times)), strict=True)]
    print("| layer (out x in) | SparseGPT | admm | least squares | best / SparseGPT |\n|---|--:|--:|--:|--:|")
    print(f"| {out} x {width} | {best[0]:.2f} s | {best[1]:.2f} s | {best[2]:.2f} s | {sum(best[1:]) / best[0]:.2f} |")


if __name__ == "__main__":
    typer.run(main)
