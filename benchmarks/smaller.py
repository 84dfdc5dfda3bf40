"""Speed and bytes of a model without structures against the whole one, random weights, interleaved in one process.

    python benchmarks/smaller.py                   # Llama-3.2-1B's shape, a quarter of the neurons less
    python benchmarks/smaller.py --shape mixture   # a mixture of eight experts, half of them less

Calibrates, prunes, saves and loads again; prints seconds, sizes on disk and in memory, and the ratios of the medians of
speed, so that what else runs on the machine hits both. The large model's structures are taken as they come (`--prune`
ranks them: Gram matrices of 16 widths of 8,192 take minutes and 5 GB), which changes no size and no speed.
"""

from __future__ import annotations

import copy
import tempfile
from enum import StrEnum
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

import zpruner
from zpruner.patterns import StructuredPattern
from zpruner.structures import Couplings, cut, find_couplings

LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
}
MIXTURE = {
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "vocab_size": 2048,
}


class Shape(StrEnum):
    """What is built."""

    LLAMA = "llama"
    MIXTURE = "mixture"


def main(
    shape: Shape = Shape.LLAMA,
    runs: Annotated[int, typer.Option(help="Of each model.")] = 9,
    tokens: Annotated[int, typer.Option(help="Of a prompt.")] = 128,
    prune: Annotated[bool | None, typer.Option(help="With `best`, calibrated.  [default: the mixture]")] = None,
) -> None:
    """Print the sizes and the ratios of speed."""
    logging.disable_progress_bar()
    kind, settings = ("llama", LLAMA) if shape is Shape.LLAMA else ("mixtral", MIXTURE)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.bfloat16).eval()
    pattern = StructuredPattern.parse("neurons:0.25" if shape is Shape.LLAMA else "experts:0.5")
    if shape is Shape.MIXTURE if prune is None else prune:
        smaller = pruned(model, pattern)
    else:
        couplings = find_couplings(model)
        smaller = cut(model, couplings, kept(couplings, pattern))
    ids = torch.arange(3, 3 + tokens)[None]
    with tempfile.TemporaryDirectory() as folder:
        sizes = [saved(each, Path(folder) / name) for name, each in (("whole", model), ("smaller", smaller))]
        loaded = AutoModelForCausalLM.from_pretrained(Path(folder) / "smaller", dtype="auto").eval()
    with torch.no_grad():
        same = torch.equal(loaded(ids).logits, smaller(ids).logits)
    smaller = loaded
    memory = [sum(parameter.nbytes for parameter in each.parameters()) for each in (model, smaller)]
    for where, (whole, left) in (("on disk", sizes), ("in memory", memory)):
        print(f"{pattern}, {where}: {whole / 1e6:.1f} MB, {left / 1e6:.1f} MB ({left / whole:.3f})")
    print(f"loaded again, the logits are {'the same' if same else 'NOT the same'}")
    for name, length in (("prefill", tokens), ("decode", 1)):
        times = measured(model, smaller, length, tokens, runs)
        print(f"{name}: {median(times[0]) / median(times[1]):.3f} x", flush=True)


def pruned(model: PreTrainedModel, pattern: StructuredPattern) -> PreTrainedModel:
    """Return a copy pruned with `best`; say what calibrating and pruning took."""
    smaller = copy.deepcopy(model)
    windows = torch.randint(3, model.config.vocab_size, (16, 256), generator=torch.Generator().manual_seed(0))
    start = perf_counter()
    calibration = zpruner.calibrate(smaller, windows, for_methods="best")
    calibrated = perf_counter()
    zpruner.prune(smaller, calibration, method="best", sparsity=str(pattern))
    seconds = calibrated - start, perf_counter() - calibrated
    print(f"calibration {seconds[0]:.1f} s, pruning {seconds[1]:.1f} s ({seconds[1] / seconds[0]:.2f} x)", flush=True)
    return smaller


def kept(couplings: Couplings, pattern: StructuredPattern) -> dict[str, torch.Tensor]:
    """Return the first structures of each coupling: which they are changes no size."""
    return {
        name: torch.arange(couplings.named(name).count) < number for name, number in couplings.kept(pattern).items()
    }


def saved(model: PreTrainedModel, folder: Path) -> int:
    """Save a model; return the bytes of its weights."""
    model.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@torch.no_grad()
def measured(
    model: PreTrainedModel, smaller: PreTrainedModel, length: int, context: int, runs: int
) -> tuple[list[float], list[float]]:
    """Return seconds of a pass of `length` tokens after a context, in turns of one model and the other."""
    times: tuple[list[float], list[float]] = ([], [])
    before = torch.arange(context)[None]
    caches = [None if length > 1 else each(before).past_key_values for each in (model, smaller)]
    for run in range(runs + 1):
        for each, cache, found in zip((model, smaller), caches, times, strict=True):
            start = perf_counter()
            each(torch.arange(length)[None], past_key_values=cache, use_cache=cache is not None)
            if run:  # the first warms up
                found.append(perf_counter() - start)
    return times


if __name__ == "__main__":
    typer.run(main)
