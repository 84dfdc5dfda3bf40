"""Perplexity against bytes: pruned, quantised, both, structured, and dense baselines, on the same windows.

    python benchmarks/quantized.py --text ../shared/data/wikitext2_raw_test.txt
    python benchmarks/quantized.py --table    # print what was measured, and what follows
    python benchmarks/quantized.py --docs     # write that and a chart into docs/quantized.md

Results are appended to a JSON-lines file as they come, and what is there already is not computed again. Needs `dvc
repro calibrate` to have run (model and calibration windows), and gguf for Q8_0 and Q4_0.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from statistics import fmean
from time import process_time
from typing import Annotated

import torch
import typer
from _default import model_and_windows
from _quantized_page import line, page, write_docs
from _quantized_rows import PER_32, Variant, read, variants
from torch import Tensor
from transformers import PreTrainedModel

import zpruner
from zpruner.evaluate.perplexity import window_losses
from zpruner.model import PrunableLayer, get_weight, reading, set_weight, take_inventory
from zpruner.packed.size import MIN_SPARSITY, bitmask_bytes
from zpruner.quantization import group_counts
from zpruner.runtime.progress import progress


def main(
    text: Annotated[Path | None, typer.Option(help="Evaluation text; the default is the pipeline's.")] = None,
    log: Path = Path("benchmarks/results/quantized.jsonl"),
    windows: int = 24,
    seqlen: int = 512,
    table: Annotated[bool, typer.Option(help="Only print what was measured.")] = False,
    docs: Annotated[bool, typer.Option(help="Only write it and the chart into docs/quantized.md.")] = False,
) -> None:
    """Fill the grid and print it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    todo = [variant for variant in variants() if variant.key not in read(log)]
    if todo and not table and not docs:
        fill(todo, log, text, windows, seqlen)
    if docs:
        write_docs(Path("docs/quantized.md"), read(log))
    else:
        print(page(read(log)))


def fill(todo: list[Variant], log: Path, text: Path | None, windows: int, seqlen: int) -> None:
    """Make every variant of a copy of the dense model in memory, and measure it."""
    dense, calibration, evaluation = model_and_windows(text, windows, seqlen)
    weights = sum(layer.out_features * layer.in_features for layer in take_inventory(dense).layers)
    measured = None
    for variant in progress(todo, "grid", len(todo), "variant"):
        model = copy.deepcopy(dense)
        start = process_time()
        method = {**variant.method, **({} if variant.quantize is None else {"quantize": dict(variant.quantize)})}
        keeps: dict[str, Tensor] = {}
        if variant.name in PER_32:
            gguf_round_trip(model, variant.name)
        elif method and variant.sequential:
            found = zpruner.prune_sequentially(model, calibration, method=method, sparsity=variant.pattern)
            keeps = {layer.name: layer.mask.keep for layer in found}
        elif method:
            measured = measured or zpruner.calibrate(dense, calibration, for_methods="sparsegpt")
            measured.replaced.clear()
            found = zpruner.prune(model, measured, method=method, sparsity=variant.pattern)
            keeps = {layer.name: layer.mask.keep for layer in found}
        seconds = process_time() - start
        with reading(model, evaluation):
            losses = [loss for batch in window_losses(model, evaluation) for loss in batch]
        layers = take_inventory(model).layers
        layers_take = sum(
            layer_bytes(
                layer,
                variant,
                None if variant.structured else keeps.get(layer.name),
                get_weight(model, layer).element_size(),
            )
            for layer in layers
        )
        entry = {
            "key": variant.key,
            "name": variant.name,
            "pattern": variant.pattern,
            "quantize": variant.quantize,
            "perplexity": math.exp(fmean(losses)),
            "losses": losses,
            "bytes": layers_take + other_bytes(model, layers, variant),
            "bytes_per_weight": layers_take / weights,
            "cpu_seconds": round(seconds, 1),
        }
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        print(line(read(log)[variant.key]), flush=True)


def gguf_round_trip(model: PreTrainedModel, name: str) -> None:
    """Put the prunable layers through a format of llama.cpp, and the embeddings through Q8_0."""
    import gguf

    def through(weight: Tensor, kind: str) -> Tensor:
        chosen = gguf.GGMLQuantizationType[kind.upper()]
        stored = gguf.quants.quantize(weight.float().numpy(), chosen)
        return torch.from_numpy(gguf.quants.dequantize(stored, chosen).copy()).to(weight.dtype)

    for layer in take_inventory(model).layers:
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


if __name__ == "__main__":
    typer.run(main)
