"""A model of LLaMA-2-7B's shape with random weights: seconds and peak memory of pruning it, beside the plain loop.

    python benchmarks/large.py [--layers 32] [--windows 128] [--seqlen 2048] [--method wanda --method sparsegpt ...]
    python benchmarks/large.py --model data/models/dense --windows 32 --seqlen 512

The plain loop is the published procedure, written here from its description: block by block, one window at a time; a
first forward pass of the block sums what its layers read, each layer is scored by its formula and pruned by a full
sort, and a second forward pass gives the next block's input. It runs on the model as transformers loads it; with
`--plain ours` on the model as this library loads it, whose linear layers may be faster (docs/design.md, Numbers). Ours
is calibrate, then score, mask and apply per method, in memory. Needs the library, torch and transformers only.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import zpruner
from zpruner.composition import Composition, compose
from zpruner.model import load_model, resolve_device, take_inventory
from zpruner.params import MethodSettings
from zpruner.presets import PRESETS
from zpruner.types import LayerStats, Stat


@dataclass
class Table:
    """Rows of the printed table; times are of finished work, memory is the peak so far.

    Processor seconds are those of all threads of this process: on a machine with other work they tell more.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Time a step and print its row."""
        self._wait()
        start, used = perf_counter(), process_time()
        yield
        self._wait()
        self.seconds[name], self.processor[name] = perf_counter() - start, process_time() - used
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        device = 0 if self.device.type == "cpu" else torch.accelerator.max_memory_allocated(self.device)
        times = f"{self.seconds[name]:.1f} | {self.processor[name]:.1f}"
        print(f"| {name} | {times} | {host / 1e9:.2f} GB | {device / 1e9:.2f} GB |", flush=True)

    def compare(self, name: str, step: str, plain: str | None) -> None:
        """Print the sum of the steps `step` and `name`, and how many times as long the step `plain` took."""
        whole = [times[step] + times[f"{name}: score, mask, apply"] for times in (self.seconds, self.processor)]
        if plain is None:
            print(f"| **{name} from zero** | **{whole[0]:.1f}** | **{whole[1]:.1f}** | | |")
        else:
            ratios = [times[plain] / ours for times, ours in zip((self.seconds, self.processor), whole, strict=True)]
            print(f"| **{plain} / ours** | **{ratios[0]:.1f} x** | **{ratios[1]:.1f} x** | | |", flush=True)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def build(layers: int, device: torch.device) -> PreTrainedModel:
    """Return a random model of LLaMA-2-7B's shape, with as many blocks as asked for."""
    dtype = torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            LlamaConfig(
                vocab_size=32000,
                hidden_size=4096,
                intermediate_size=11008,
                num_hidden_layers=layers,
                num_attention_heads=32,
                max_position_embeddings=4096,
            ),
            dtype=dtype,
        )
    model = model.to_empty(device=device).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    return model


def plain_loop(model: PreTrainedModel, windows: Tensor, method: str, ratio: float) -> None:
    """Prune by the published loop; the model's weights are overwritten."""
    composition = compose(MethodSettings(**PRESETS.get(method, {"score": method})))
    inventory, device = take_inventory(model), next(model.parameters()).device
    hidden, calls = [], []

    class Caught(Exception):  # noqa: N818
        """Ends the forward pass at the first block."""

    def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden.append(args[0])
        calls.append(kwargs)
        raise Caught

    handle = model.get_submodule(f"{inventory.blocks}.0").register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows:
        try:
            model(window[None].to(device, torch.long), use_cache=False)
        except Caught:
            continue
    handle.remove()
    for index in range(inventory.n_blocks):
        block = model.get_submodule(f"{inventory.blocks}.{index}")
        layers = {layer.name: layer for layer in inventory.layers if layer.block == index}
        sums = {name: _Sums(layer.in_features, device) for name, layer in layers.items()}
        handles = [model.get_submodule(name).register_forward_hook(sums[name].add) for name in layers]
        for state, kwargs in zip(hidden, calls, strict=True):
            block(state, **kwargs)
        for handle in handles:
            handle.remove()
        for name in layers:
            weight = model.get_submodule(name).weight.data
            score = plain_score(method, composition, weight.float(), sums[name].stats(name, len(windows)))
            flat = score if composition.group.value == "row" else score.reshape(1, -1)
            order = torch.sort(flat, dim=-1, stable=True)[1][:, : int(flat.shape[1] * ratio)]
            mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, order, True)
            weight[mask.reshape(weight.shape)] = 0
        hidden = [_first(block(state, **kwargs)) for state, kwargs in zip(hidden, calls, strict=True)]


def plain_score(method: str, composition: Composition, weight: Tensor, stats: LayerStats) -> Tensor:
    """Return the score as its formula says, where that is Wanda's or Z-Pruner's; else the library's."""
    norm = stats.squared_norm().sqrt()
    if method == "wanda":
        return weight.abs() * norm
    if method != "zpruner":
        return composition.score(weight, stats).values
    rows, columns = weight / weight.norm(dim=1, keepdim=True), weight / weight.norm(dim=0, keepdim=True)
    by_row, by_column = ((part - part.mean()) / part.std() for part in (rows, columns))
    near_zero = (weight.abs() < 0.1 * weight.abs().mean()).float().mean()
    alpha = 0.7 * (1 - 0.3 * near_zero)
    return (alpha * by_row.abs() ** 3 + (1 - alpha) * by_column.abs() ** 3) * norm**1.5


class _Sums:
    """Sums over what a layer reads, as the published scripts keep them: each layer its own."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.sq, self.abs, self.top = (torch.zeros(width, device=device) for _ in range(3))

    def add(self, _: nn.Module, inputs: tuple[Tensor], _result: object) -> None:
        rows = inputs[0].reshape(-1, inputs[0].shape[-1]).float()
        self.sq += rows.square().sum(0)
        self.abs += rows.abs().sum(0)
        self.top = torch.maximum(self.top, rows.abs().amax(0))
        self.tokens += rows.shape[0]

    def stats(self, name: str, windows: int) -> LayerStats:
        return LayerStats(name, self.tokens, windows, sq_sum=self.sq, abs_sum=self.abs, max_abs=self.top)


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def ours(model: PreTrainedModel, calibration: zpruner.Calibration, method: str, ratio: float) -> None:
    """Score, mask and apply in memory."""
    zpruner.prune(model, calibration, method=method, sparsity=ratio)


@torch.no_grad()
def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint folder instead of the 7B shape.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 32,
    windows: Annotated[int, typer.Option(min=1)] = 128,
    seqlen: Annotated[int, typer.Option(min=2)] = 2048,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    method: Annotated[list[str] | None, typer.Option(help="May be given more than once.")] = None,
    ratio: float = 0.5,
    device: str = "auto",
    plain: Annotated[
        str, typer.Option(help="The plain loop too, on the model that this loads: torch, ours; none.")
    ] = "torch",
) -> None:
    """Print the table."""
    place = resolve_device(device)
    table = Table(place)

    def fresh() -> PreTrainedModel:
        return build(layers, place) if model is None else load_model(model, device=device)

    def as_published() -> PreTrainedModel:
        if model is None:
            return build(layers, place)
        return AutoModelForCausalLM.from_pretrained(model, dtype="auto").to(place).eval()

    print("| step | seconds | processor seconds | peak host memory | peak device memory |\n|---|--:|--:|--:|--:|")
    with table.row("load" if model else "build"):
        network = fresh()
    vocabulary = network.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (windows, seqlen), dtype=torch.int32, generator=generator)
    chosen = method or ["zpruner", "wanda"]
    needs = {name: compose(MethodSettings(**PRESETS.get(name, {"score": name}))).needs for name in chosen}
    run: Callable[..., Any] = zpruner.calibrate
    for gram in sorted({Stat.GRAM in found for found in needs.values()}):
        step = "calibrate, Gram matrices" if gram else "calibrate"
        with table.row(step):
            calibration = run(network, ids, gram=gram, batch_size=batch_size)
        for name in (name for name in chosen if (Stat.GRAM in needs[name]) == gram):
            network = network if name == chosen[0] else fresh()
            with table.row(f"{name}: score, mask, apply"):
                ours(network, calibration, name, ratio)
            table.compare(name, step, None)
            loaders = {"torch": (as_published,), "ours": (fresh,), "both": (as_published, fresh), "none": ()}[plain]
            for load in () if gram else loaders:
                row = f"{name}: plain loop" + (", linear layers as loaded here" if load is fresh else "")
                network = load()
                with table.row(row):
                    plain_loop(network, ids, name, ratio)
                table.compare(name, step, row)
    print(
        f"\n{windows} windows of {seqlen} tokens, {torch.get_num_threads()} threads, {place}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    typer.run(main)
