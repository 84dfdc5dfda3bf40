"""Perplexity against bytes: pruned, quantised, both, and dense baselines, on the same windows.

    python benchmarks/quantized.py --text ../shared/data/wikitext2_raw_test.txt
    python benchmarks/quantized.py --table

Results are appended to a JSON-lines file as they come, and what is there already is not computed again; the table is
made from the file. Needs `dvc repro calibrate` to have run (model and calibration windows), and gguf for Q8_0 and Q4_0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Annotated, Any

import torch
import typer
from _default import model_and_windows
from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.evaluate.perplexity import window_losses
from zpruner.model import PrunableLayer, get_weight, reading, set_weight, take_inventory
from zpruner.packed.size import MIN_SPARSITY, bitmask_bytes
from zpruner.pruning.presets import PRESETS
from zpruner.quantization import Grid, group_counts
from zpruner.runtime.progress import progress

PER_32 = {"q8_0": 34, "q4_0": 18}
"""Formats of llama.cpp -> bytes of 32 weights."""
NEAREST, GPTQ = {"rounding": "nearest"}, {"rounding": "gptq"}
SEQUENTIAL = {"score": "magnitude", "correct": {}, "measure": "submodule"}
"""Plain quantisation with what `best` has besides its mask and update."""


@dataclass(frozen=True)
class Variant:
    """A row: how it is called, the sparsity, and what is done; `quantize` as in params.yaml."""

    name: str
    pattern: str
    method: Mapping[str, Any]
    quantize: Mapping[str, Any] | None = None
    sequential: bool = True

    @property
    def key(self) -> str:
        """What tells it from the others in the log."""
        return json.dumps([self.name, self.pattern, self.quantize, self.sequential])

    @property
    def grid(self) -> Grid | None:
        """The grid of its values."""
        if self.quantize is None:
            return None
        bits = self.quantize["bits"]
        return Grid(bits, self.quantize.get("group", "row" if bits == 8 else 32))


def variants() -> Iterator[Variant]:
    """Yield the rows, what is told from most first."""
    yield Variant("dense", "0", {})
    dense, best, sparsegpt = {"score": "magnitude"}, PRESETS["best"], PRESETS["sparsegpt"]
    for bits in (4, 3, 8):
        yield Variant("dense", "0", dense, {"bits": bits, **NEAREST}, sequential=False)
    int8, int4, int3 = ({"bits": bits, **GPTQ} for bits in (8, 4, 3))
    for grid in (int3, int4):
        yield Variant("dense", "0", dense, grid, sequential=False)
    yield from (Variant(name, "0", {}) for name in ("q4_0", "q8_0"))
    yield Variant("sparsegpt", "0.3", sparsegpt, int4, sequential=False)
    yield from (Variant("sparsegpt", "0.5", sparsegpt, each, sequential=False) for each in (None, int8, int4))
    for grid in ({**int3, "group": 128}, {**int4, "group": 128}, int8):
        yield Variant("dense", "0", dense, grid, sequential=False)
    for pattern in ("0.5", "0.3", "0.6", "2:4", "0.7"):
        yield from (Variant("best", pattern, best, each) for each in (int4, int8, None))
    yield from (Variant("dense", "0", SEQUENTIAL, grid) for grid in (int3, int4))


def main(
    text: Annotated[Path | None, typer.Option(help="Evaluation text; the default is the pipeline's.")] = None,
    log: Path = Path("benchmarks/results/quantized.jsonl"),
    windows: int = 24,
    seqlen: int = 512,
    table: Annotated[bool, typer.Option(help="Only print the table.")] = False,
) -> None:
    """Fill the grid and print it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    todo = [variant for variant in variants() if variant.key not in read(log)]
    if todo and not table:
        fill(todo, log, text, windows, seqlen)
    show(read(log))


def fill(todo: list[Variant], log: Path, text: Path | None, windows: int, seqlen: int) -> None:
    """Make every variant in memory, measure it and restore the dense model."""
    model, calibration, evaluation = model_and_windows(text, windows, seqlen)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = take_inventory(model).layers
    measured = None
    for variant in progress(todo, "grid", len(todo), "variant"):
        start = process_time()
        method = {**variant.method, **({} if variant.quantize is None else {"quantize": dict(variant.quantize)})}
        keeps: dict[str, Tensor] = {}
        if variant.name in PER_32:
            gguf_round_trip(model, layers, variant.name)
        elif method and variant.sequential:
            found = zpruner.prune_sequentially(model, calibration, method=method, sparsity=variant.pattern)
            keeps = {layer.name: layer.mask.keep for layer in found}
        elif method:
            measured = measured or zpruner.calibrate(model, calibration, for_methods="sparsegpt")
            measured.replaced.clear()
            found = zpruner.prune(model, measured, method=method, sparsity=variant.pattern)
            keeps = {layer.name: layer.mask.keep for layer in found}
        seconds = process_time() - start
        with reading(model, evaluation):
            losses = [loss for batch in window_losses(model, evaluation) for loss in batch]
        layers_take = sum(
            layer_bytes(layer, variant, keeps.get(layer.name), get_weight(model, layer).element_size())
            for layer in layers
        )
        entry = {
            "key": variant.key,
            "name": variant.name,
            "pattern": variant.pattern,
            "quantize": variant.quantize,
            "sequential": variant.sequential,
            "perplexity": math.exp(fmean(losses)),
            "losses": losses,
            "bytes": layers_take + other_bytes(model, layers, variant),
            "bytes_per_weight": layers_take / sum(layer.out_features * layer.in_features for layer in layers),
            "cpu_seconds": round(seconds, 1),
        }
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        with torch.no_grad():
            model.load_state_dict(state)


def gguf_round_trip(model: PreTrainedModel, layers: tuple[PrunableLayer, ...], name: str) -> None:
    """Put the prunable layers through a format of llama.cpp, and the embeddings through Q8_0."""
    import gguf

    def through(weight: Tensor, kind: str) -> Tensor:
        chosen = gguf.GGMLQuantizationType[kind.upper()]
        stored = gguf.quants.quantize(weight.float().numpy(), chosen)
        return torch.from_numpy(gguf.quants.dequantize(stored, chosen).copy()).to(weight.dtype)

    for layer in layers:
        set_weight(model, layer, through(get_weight(model, layer), name))
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings.copy_(through(embeddings, "q8_0"))


def layer_bytes(layer: PrunableLayer, variant: Variant, keep: Tensor | None, itemsize: int) -> int:
    """Return the bytes of a layer's weight: packed where that is smaller (3 bits as 3), or as llama.cpp has it."""
    count = layer.out_features * layer.in_features
    if variant.name in PER_32:
        return count * PER_32[variant.name] // 32
    keep = torch.ones(layer.out_features, layer.in_features, dtype=torch.bool) if keep is None else keep
    kept, grid = int(keep.sum()), variant.grid
    packs = kept <= (1 - MIN_SPARSITY) * count
    found = bitmask_bytes(layer.out_features, layer.in_features) + 4 * (layer.out_features + 1) if packs else 0
    if grid is None:
        return found + (kept if packs else count) * itemsize
    return found + math.ceil(kept * grid.bits / 8) + int(group_counts(keep, grid).sum()) * grid.scale_dtype.itemsize


def other_bytes(model: PreTrainedModel, layers: tuple[PrunableLayer, ...], variant: Variant) -> int:
    """Return the bytes of everything else: embeddings as Q8_0 where llama.cpp has them so."""
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    total -= sum(get_weight(model, layer).nbytes for layer in layers)
    if variant.name in PER_32:
        embeddings = model.get_input_embeddings().weight
        total += embeddings.numel() * PER_32["q8_0"] // 32 - embeddings.nbytes
    return total


def read(log: Path) -> dict[str, dict[str, Any]]:
    """Return the measurements by the variant's key; the last of a key counts."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return {entry["key"]: entry for entry in entries}


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a Markdown table in the order of bytes per weight; `*`: no row with as few predicts as well."""
    rows = sorted(found.values(), key=lambda entry: (entry["bytes_per_weight"], entry["perplexity"]))
    dense = next((entry for entry in rows if entry["name"] == "dense" and entry["quantize"] is None), None)
    print("| variant | values | bytes a weight | MB | perplexity | over dense | seconds |")
    print("|---|---|--:|--:|--:|--:|--:|")
    least = math.inf
    for entry in rows:
        mark = "\\*" if entry["perplexity"] < least else ""
        least = min(least, entry["perplexity"])
        change = "" if dense is None else f"{entry['perplexity'] / dense['perplexity'] - 1:+.1%}"
        pattern = "" if entry["pattern"] == "0" else f" {entry['pattern']}"
        takes = f"{entry['bytes_per_weight']:.3f} | {entry['bytes'] / 1e6:.1f}"
        predicts = f"{entry['perplexity']:.2f}{mark} | {change}"
        print(f"| {entry['name']}{pattern} | {values(entry)} | {takes} | {predicts} | {entry['cpu_seconds']:.0f} |")


def values(entry: Mapping[str, Any]) -> str:
    """Return how a row's values are stored and rounded."""
    if entry["quantize"] is None:
        return entry["name"] if entry["name"] in PER_32 else "bf16"
    bits, rounding = entry["quantize"]["bits"], entry["quantize"]["rounding"]
    group = entry["quantize"].get("group", "row" if bits == 8 else 32)
    return f"int{bits}, {group}, {rounding}"


if __name__ == "__main__":
    typer.run(main)
