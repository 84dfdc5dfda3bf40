"""How far masks agree where statistics differ by rounding, as another device or order of summation gives.

    python benchmarks/agreement.py                # block 10 at 50 %; needs `dvc repro calibrate` to have run
    python benchmarks/agreement.py --noise 1e-7

Every statistic is multiplied by `1 + noise * N(0, 1)`, the Gram matrix symmetrically; the share of equal mask entries
is printed per method: over all layers of the block, and of the worst layer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import typer
from torch import Tensor

from zpruner.calibrate import Activations
from zpruner.composition import Composition, compose
from zpruner.model import Checkpoint
from zpruner.params import MethodSettings
from zpruner.presets import PRESETS
from zpruner.types import LayerStats, SparsityPattern


def main(
    noise: float = 1e-6,
    block: int = 10,
    sparsity: float = 0.5,
    methods: str = "wanda,ria,zpruner,sparsegpt,apt_mm,alps,best",
) -> None:
    """Print a Markdown table."""
    dense, activations = Checkpoint(Path("data/models/dense")), Activations(Path("data/activations/dense"))
    layers = [layer for layer in activations.layers if layer.block == block]
    print(f"noise {noise:g}, {len(layers)} layers of block {block}\n\n| method | equal | worst layer |\n|---|--:|--:|")
    for method in methods.split(","):
        composition, pattern = compose(MethodSettings(**PRESETS[method])), SparsityPattern(ratio=sparsity)
        shares, weights = [], []
        for layer in layers:
            weight, stats = dense.read_weight(layer), activations.stats(layer.name)
            same = _mask(composition, weight, stats, pattern) == _mask(
                composition, weight, noisy(stats, noise), pattern
            )
            shares.append(float(same.double().mean()))
            weights.append(same.numel())
        mean = sum(share * count for share, count in zip(shares, weights, strict=True)) / sum(weights)
        print(f"| {method} | {mean:.3%} | {min(shares):.3%} |", flush=True)


def noisy(stats: LayerStats, noise: float) -> LayerStats:
    """Return the statistics with relative noise of that size."""
    generator = torch.Generator().manual_seed(0)

    def factor(values: Tensor) -> Tensor:
        return torch.randn(values.shape, generator=generator, dtype=torch.float64).mul_(noise).add_(1)

    assert stats.gram is not None, "set calibration.gram: true in params.yaml"
    upper = factor(stats.gram).triu()
    symmetric = upper + upper.triu(1).mT
    sums = {name: getattr(stats, name) for name in ("sq_sum", "abs_sum", "max_abs")}
    changed = {name: (value.double() * factor(value)).to(value.dtype) for name, value in sums.items()}
    return replace(stats, gram=(stats.gram.double() * symmetric).float(), **changed)


def _mask(composition: Composition, weight: Tensor, stats: LayerStats, pattern: SparsityPattern) -> Tensor:
    return composition.mask(composition.score(weight, stats, pattern), weight, stats, pattern).keep


if __name__ == "__main__":
    typer.run(main)
