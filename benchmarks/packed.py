"""Packed weights against their controls: products out of cache, and a random model of Llama-3.2-1B's shape.

    python benchmarks/packed.py gemv                  # seconds; --threads 1: by its own clock; --values int8, int4
    python benchmarks/packed.py batches               # 1 to 512 rows of x
    python benchmarks/packed.py model                 # minutes, 6 GB of memory, 5 GB of disk; --values int8, int4
    python benchmarks/packed.py model CHECKPOINT      # the same of another shape
    python benchmarks/packed.py bytes CHECKPOINT      # what 50, 60 and 70 % of zeros save

Others' load on the machine is in every number: rows take turns, and minima (gemv) or medians of pairs are shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from _packed_model import config_of, make_packed, zeroed
from torch import Tensor

from zpruner.bench import Plan, bench, control, markdown, measure
from zpruner.bench.control import rounded
from zpruner.kernels import Codes, DenseMatrix, Kernels, Layout, PackedMatrix, Parts, choose
from zpruner.kernels.library import Isa
from zpruner.packed.encode import coded_parts, nonzero, parts_of
from zpruner.packed.linear import PackedLinear
from zpruner.packed.pack import pack
from zpruner.runtime import pages

SHAPES = ((11008, 4096), (4096, 11008), (8192, 8192))


def matrix(kernels: Kernels, layout: Layout, parts: Parts) -> PackedMatrix:
    """Where a loaded model's lie."""
    return PackedMatrix(kernels, "w", layout, replace(parts, values=pages.copied(parts.values)))


def packed(kernels: Kernels, weight: Tensor) -> PackedMatrix:
    return matrix(kernels, Layout.of(weight), parts_of(weight, nonzero(weight)))


def least(runs: dict[str, Callable[[], object]], turns: int, clock: Callable[[], float]) -> dict[str, float]:
    """Milliseconds of the fastest run of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = clock()
            run()
            if turn:
                found[name].append((clock() - start) * 1e3)
    return {name: min(times) for name, times in found.items()}


def coded(kernels: Kernels, weight: Tensor, codes: Codes, keep: Tensor | None) -> PackedMatrix:
    """The weight as integers, of what is kept or of all."""
    layout, parts = rounded(weight, codes)
    if keep is None:
        return matrix(kernels, layout, parts)
    layout = replace(layout, masked=True)
    integers = torch.randint(-7, 8, weight.shape, dtype=torch.int8)
    scales = torch.rand(int(layout.scales(keep.sum(dim=1)).sum())).add_(0.5)
    assert parts.scales is not None
    return matrix(kernels, layout, coded_parts(layout, integers, scales.to(parts.scales.dtype), keep))


def gemv(threads: int, values: str, turns: int) -> None:
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    best = choose()
    assert best.library is not None, best.why
    isas = [isa for isa in Isa if best.library.zp_supports(isa)][1:]
    codes = {"bf16": None, "int8": Codes(8, 0), "int4": Codes(4, 32)}[values]
    print(f"{best.why}; {threads} threads; least milliseconds of {turns} runs in turns\n")
    print(f"| out x in | zeros | kernel | torch {values} | dense {values} | packed | over control | over torch |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for rows, columns in SHAPES:
        x = torch.randn(1, columns).bfloat16()
        dense = pages.copied(torch.randn(rows, columns).bfloat16())
        whole = pages.copied(torch.randint(-127, 128, dense.shape, dtype=torch.int8))
        for share in (0.5, 0.6, 0.7):
            keep = torch.rand(dense.shape) >= share
            runs: dict[str, Callable[[], object]] = {}
            if values == "bf16":
                runs["torch"] = partial(torch.nn.functional.linear, x, dense)
            elif values == "int8":
                runs["torch"] = partial(torch._weight_int8pack_mm, x, whole, torch.rand(rows).bfloat16())
            for isa in isas:
                kernels = Kernels(best.library, isa, "")
                if codes is None:
                    runs[f"dense {isa.name}"] = partial(DenseMatrix(kernels, dense).multiply, x)
                    runs[f"packed {isa.name}"] = partial(packed(kernels, dense * keep).multiply, x)
                else:
                    runs[f"dense {isa.name}"] = partial(coded(kernels, dense, codes, None).multiply, x)
                    runs[f"packed {isa.name}"] = partial(coded(kernels, dense, codes, keep).multiply, x)
            times = least(runs, turns, clock)
            control = min(times[f"dense {isa.name}"] for isa in isas)
            for isa in isas:
                own, sparse = times[f"dense {isa.name}"], times[f"packed {isa.name}"]
                base = control if isa is isas[-1] else own
                beside = times.get("torch")
                shown = ("", "") if beside is None else (f"{beside:.2f}", f"{beside / sparse:.2f}")
                print(
                    f"| {rows} x {columns} | {share:.0%} | {isa.name.lower()} | {shown[0]} | {base:.2f} "
                    f"| {sparse:.2f} | {base / sparse:.2f} | {shown[1]} |",
                    flush=True,
                )


def batches(threads: int) -> None:
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    weight = zeroed(torch.randn(4096, 4096).bfloat16(), 0.5)
    layout = Layout(4096, 4096, torch.bfloat16)
    layer = PackedLinear("w", layout, parts_of(weight, nonzero(weight)), None)
    print("\n| rows of x | torch bf16 | packed layer | over torch |")
    print("|---:|---:|---:|---:|")
    for rows in (1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512):
        x = torch.randn(rows, 4096).bfloat16()
        runs: dict[str, Callable[[], object]] = {
            "torch": partial(torch.nn.functional.linear, x, weight),
            "packed": partial(layer, x),
        }
        with torch.no_grad():
            times = least(runs, 20 if rows < 100 else 8, clock)
        ratio = times["torch"] / times["packed"]
        print(f"| {rows} | {times['torch']:.2f} | {times['packed']:.2f} | {ratio:.2f} |")


def model(folder: Path, checkpoint: Path | None, share: float, values: str, plan: Plan, layers: int) -> None:
    shape = "1b" if checkpoint is None else checkpoint.name
    made = folder / f"{shape}-{layers}-{share:.0%}-{values}".replace("%", "") / "packed"
    if not made.exists():
        print(make_packed(config_of(checkpoint, layers), share, values, made))
    if torch.get_num_threads() == 1:  # its own clock: what others do on the machine counts less
        measure.perf_counter = control.perf_counter = time.thread_time
    found = bench([made], plan)
    print(markdown(found))
    ratios = [a / b for a, b in zip(found.rows[0].decode, found.rows[1].decode, strict=True)]
    print(f"over the control, round by round: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    print(f"milliseconds a token: {[round(1e3 / statistics.median(row.decode), 1) for row in found.rows]}")


def sizes(folder: Path) -> None:
    from zpruner.model import load_model, take_inventory

    network = load_model(folder, device="cpu")
    layers = take_inventory(network).layers
    print("| zeros | MB | of dense | prunable weights, of dense |\n|---:|---:|---:|---:|")
    for share in (0.5, 0.6, 0.7):
        for layer in layers:
            weight = layer.view(network.get_parameter(layer.tensor).detach())
            weight.copy_(torch.randn(weight.shape).clamp(min=1e-3))
            zeroed(weight, share)
        with tempfile.TemporaryDirectory() as made:
            network.save_pretrained(Path(made, "dense"))
            Path(made, "packed").mkdir()
            saved = pack(Path(made, "dense"), Path(made, "packed"))
        print(
            f"| {share:.0%} | {saved.packed / 1e6:.1f} | {saved.share:.3f} "
            f"| {saved.weights_packed / saved.weights_dense:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gemv", "batches", "model", "bytes"])
    parser.add_argument("checkpoint", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--values", choices=["bf16", "int8", "int4"], default="bf16")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "zpruner-packed")
    parser.add_argument("--zeros", type=float, default=0.5)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(given.threads)
    if given.what == "gemv":
        gemv(given.threads, given.values, given.turns)
    elif given.what == "batches":
        batches(given.threads)
    elif given.what == "model":
        plan = Plan(new_tokens=given.tokens, prefill=given.prefill, rounds=given.rounds)
        model(given.folder, given.checkpoint, given.zeros, given.values, plan, given.layers)
    else:
        sizes(given.checkpoint)


if __name__ == "__main__":
    main()
