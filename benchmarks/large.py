"""A model of LLaMA-2-7B's shape with random weights: seconds and peak memory of pruning it, beside the plain loop.

    python benchmarks/large.py [--layers 32] [--windows 128] [--seqlen 2048] [--method wanda --method sparsegpt ...]
    python benchmarks/large.py --model data/models/dense --windows 32 --seqlen 512

The plain loop (benchmarks/published.py) is the published procedure: block by block, one window at a time, two forward
passes per block, full sorts. It runs on the model as transformers loads it; with `--plain ours` on the model as this
library loads it, whose linear layers may be faster (docs/design.md, Numbers). There is none for solvers other than
SparseGPT. Ours is calibrate, then score, mask and apply per method, in memory; a further sparsity starts from the
scores, which are kept, or from the statistics where a method chooses its mask itself. Needs the library, torch and
transformers only.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import published
import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import zpruner
from zpruner.model import PrunableLayer, get_weight, load_model, resolve_device, set_weight
from zpruner.pruning.sequential import layer_patterns
from zpruner.types import CHANNEL_SUMS, LayerStats, SparsityPattern, Stat


@dataclass
class Table:
    """Rows of the printed table; times are of finished work.

    Memory is the peak: of the host so far, of the device during the step, what is there from earlier included.
    Processor seconds are those of all threads of this process: on a machine with other work they tell more.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Time a step and print its row."""
        self._wait()
        if self.device.type != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
        start, used = perf_counter(), process_time()
        yield
        self._wait()
        self.seconds[name], self.processor[name] = perf_counter() - start, process_time() - used
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        device = 0 if self.device.type == "cpu" else torch.accelerator.max_memory_allocated(self.device)
        times = f"{self.seconds[name]:.1f} | {self.processor[name]:.1f}"
        print(f"| {name} | {times} | {host / 1e9:.2f} GB | {device / 1e9:.2f} GB |", flush=True)

    def compare(self, name: str, steps: list[str], plain: str | None) -> None:
        """Print the sum of `steps`, all that the method takes, or how many times as long the step `plain` took."""
        whole = [sum(times[step] for step in steps) for times in (self.seconds, self.processor)]
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


def ours(
    table: Table, model: PreTrainedModel, calibration: zpruner.Calibration, method: str, ratio: float, further: float
) -> list[str]:
    """Score, mask and apply in memory, and before the weights are overwritten a further sparsity.

    Returns:
        The rows that pruning to `ratio` took.
    """
    composition, inventory = published.composition_of(method), calibration.inventory
    steps = [f"{method}: {step}" for step in ("score", "mask", "apply")]

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        return get_weight(model, layer), calibration.stats(layer.name)

    def every(sparsity: float) -> Iterator[tuple[PrunableLayer, SparsityPattern, Tensor, LayerStats]]:
        patterns = layer_patterns(composition, SparsityPattern(ratio=sparsity), inventory, read)
        for layer in inventory.layers:
            yield layer, patterns[layer.name], *read(layer)

    scores = {}
    with table.row(steps[0]):
        for layer, _, weight, stats in every(ratio) if not composition.solves else ():
            scores[layer.name] = composition.score(weight, stats)
    with table.row(f"{method}: a further sparsity, {further:g}"):
        for layer, pattern, weight, stats in every(further):
            composition.apply(weight, composition.mask(weight, stats, pattern, scores.get(layer.name)), stats)
    with table.row(steps[1]):
        masks = {
            layer.name: composition.mask(weight, stats, pattern, scores.get(layer.name))
            for layer, pattern, weight, stats in every(ratio)
        }
    del scores
    with table.row(steps[2]):
        for layer in inventory.layers:
            weight, stats = read(layer)
            set_weight(model, layer, composition.apply(weight, masks[layer.name], stats))
    return steps


@torch.no_grad()
def main(
    model: Annotated[Path | None, typer.Option(help="A checkpoint folder instead of the 7B shape.")] = None,
    layers: Annotated[int, typer.Option(min=1)] = 32,
    windows: Annotated[int, typer.Option(min=1)] = 128,
    seqlen: Annotated[int, typer.Option(min=2)] = 2048,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    method: Annotated[list[str] | None, typer.Option(help="May be given more than once.")] = None,
    ratio: float = 0.5,
    further: Annotated[float, typer.Option(help="Another sparsity of the same method.")] = 0.6,
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

    def calibrated(step: str, gram: bool) -> zpruner.Calibration:
        network = fresh()
        with table.row(step):
            return zpruner.calibrate(
                network, ids, stats=CHANNEL_SUMS | ({Stat.GRAM} if gram else set()), batch_size=batch_size
            )

    def as_plain(load: Callable[[], PreTrainedModel], name: str, row: str) -> None:
        network = load()
        with table.row(row):
            published.prune(network, ids, name, ratio)

    print("| step | seconds | processor seconds | peak host memory | peak device memory |\n|---|--:|--:|--:|--:|")
    with table.row("load" if model else "build"):
        vocabulary = fresh().config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (windows, seqlen), dtype=torch.int32, generator=generator)
    chosen = method or ["zpruner", "wanda"]
    needs = {name: published.composition_of(name).needs for name in chosen}
    for gram in sorted({Stat.GRAM in found for found in needs.values()}):
        step = "calibrate, Gram matrices" if gram else "calibrate"
        calibration = calibrated(step, gram)
        for name in (name for name in chosen if (Stat.GRAM in needs[name]) == gram):
            steps = [step, *ours(table, fresh(), calibration, name, ratio, further)]
            table.compare(name, steps, None)
            loaders = {"torch": (as_published,), "ours": (fresh,), "both": (as_published, fresh), "none": ()}[plain]
            for load in () if gram and name != "sparsegpt" else loaders:
                row = f"{name}: plain loop" + (", linear layers as loaded here" if load is fresh else "")
                as_plain(load, name, row)
                table.compare(name, steps, row)
        del calibration  # all Gram matrices of a model
    print(
        f"\n{windows} windows of {seqlen} tokens, {torch.get_num_threads()} threads, {place}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    typer.run(main)
