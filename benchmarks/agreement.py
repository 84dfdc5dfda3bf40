"""How far masks agree where statistics differ by rounding, as another device or order of summation gives.

    python benchmarks/agreement.py                # block 10 at 50 %; needs `dvc repro calibrate` to have run
    python benchmarks/agreement.py --noise 1e-7
    python benchmarks/agreement.py --forward bfloat16    # or float32: the model is calibrated twice

Every statistic is multiplied by `1 + noise * N(0, 1)`, the Gram matrix symmetrically; the share of equal mask entries
is printed per method: over all layers of the block, and of the worst layer.

With `--forward` the noise is in the product of every linear layer of a second calibration instead, before it is rounded
to the dtype of that name: what another device changes in the activations themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import zpruner
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.model import load_model
from zpruner.pruning.compose import compose
from zpruner.pruning.composition import Composition
from zpruner.pruning.presets import PRESETS
from zpruner.settings.params import MethodSettings
from zpruner.text import read_windows
from zpruner.types import CHANNEL_SUMS, LayerStats, SparsityPattern, Stat


def main(
    noise: float = 1e-6,
    block: int = 10,
    sparsity: float = 0.5,
    methods: str = "wanda,ria,zpruner,sparsegpt,apt_mm,alps,best",
    forward: Annotated[str | None, typer.Option(help="Calibrate twice, with the model in this dtype.")] = None,
) -> None:
    """Print a Markdown table."""
    dense, activations = Checkpoint(Path("data/models/dense")), Activations(Path("data/activations/dense"))
    layers = [layer for layer in activations.layers if layer.block == block]
    here: Callable[[str], LayerStats]
    elsewhere: Callable[[str], LayerStats]
    if forward is None:
        here, elsewhere = activations.stats, lambda name: noisy(activations.stats(name), noise)
    else:
        here, elsewhere = calibrated(forward, 0.0), calibrated(forward, noise)
    print(f"noise {noise:g} in the {'statistics' if forward is None else f'products of a {forward} model'}, ", end="")
    print(f"{len(layers)} layers of block {block}")
    apart = [_apart(here(layer.name), elsewhere(layer.name)) for layer in layers]
    print(f"squared norms of channels {sum(apart) / len(apart):.1e} apart\n")
    print("| method | equal | worst layer |\n|---|--:|--:|")
    for method in methods.split(","):
        composition, pattern = compose(MethodSettings(**PRESETS[method])), SparsityPattern(ratio=sparsity)
        shares, weights = [], []
        for layer in layers:
            weight = dense.read_weight(layer)
            same = _mask(composition, weight, here(layer.name), pattern) == _mask(
                composition, weight, elsewhere(layer.name), pattern
            )
            shares.append(float(same.double().mean()))
            weights.append(same.numel())
        mean = sum(share * count for share, count in zip(shares, weights, strict=True)) / sum(weights)
        print(f"| {method} | {mean:.3%} | {min(shares):.3%} |", flush=True)


def _apart(one: LayerStats, other: LayerStats) -> float:
    return float((other.squared_norm() / one.squared_norm() - 1).abs().mean())


def calibrated(dtype: str, noise: float) -> Callable[[str], LayerStats]:
    """Calibrate the default model; return what gives a layer's statistics.

    Args:
        dtype: of the model.
        noise: relative, in every product of a linear layer, which is summed in float32 and then rounded to `dtype`.
    """
    model = load_model(Path("data/models/dense"), dtype)
    generator = torch.Generator().manual_seed(0)

    def disturb(module: nn.Linear, inputs: tuple[Tensor], product: Tensor) -> Tensor:
        bias = None if module.bias is None else module.bias.float()
        exact = nn.functional.linear(inputs[0].float(), module.weight.float(), bias)
        return (exact * torch.randn(exact.shape, generator=generator).mul_(noise).add_(1)).to(product.dtype)

    for module in model.modules():
        if noise and isinstance(module, nn.Linear):
            module.register_forward_hook(disturb)
    windows, _ = read_windows(Path("data/calibration/tokens.arrow"))
    return zpruner.calibrate(model, windows, stats=CHANNEL_SUMS | {Stat.GRAM}).stats


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
    return composition.mask(weight, stats, pattern).keep


if __name__ == "__main__":
    typer.run(main)
