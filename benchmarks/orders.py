"""What another order is worth at N:M: layer errors and perplexity, on statistics of the unpruned default model.

    python benchmarks/orders.py
    python benchmarks/orders.py --text another.txt --only "best,best neurons heads stream"

Prunes every layer with the support and the weights of `best`, or with RIA's masks alone, and prints the mean error of
layers by kind, and the perplexity on the evaluation text, which is news that was not calibrated with, and on other
texts. Needs `dvc repro calibrate fetch@evaluation` to have run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import typer

import zpruner
from zpruner.evaluate import perplexity
from zpruner.model import set_parameters
from zpruner.pruning.permuting import put_back
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.sources import read_text, resolve_source
from zpruner.text import evaluation_windows, read_windows

FITTED = {"damping": 0.1, "shrinkage": "auto"}
BEST = {"score": "admm", "settings": FITTED, "update": {"name": "least_squares", "settings": FITTED}}
RIA = {"score": "ria", "group": "row"}
EVERY = ["neurons", "heads", "stream"]
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "best": BEST,
    "best neurons": {**BEST, "permute": EVERY[:1]},
    "best neurons heads": {**BEST, "permute": EVERY[:2]},
    "best neurons heads stream": {**BEST, "permute": EVERY},
    "ria": RIA,
    "ria neurons heads stream": {**RIA, "permute": EVERY},
    "ria channels": {**RIA, "permute": "channels"},
}
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def main(
    text: Annotated[list[Path] | None, typer.Option(help="Another text; may be given several times.")] = None,
    pattern: str = "2:4",
    evaluated: Annotated[int, typer.Option(help="Windows of 512 tokens of each text.")] = 6,
    only: Annotated[str, typer.Option(help="Variants, separated by commas.")] = ",".join(VARIANTS),
) -> None:
    """Print a row for every variant as soon as it is there."""
    keep_freed_memory()
    model, tokenizer = zpruner.load("data/models/dense")
    texts = [read_windows(Path("data/evaluation/tokens.arrow"))[0][:evaluated]]
    for path in text or []:
        found = read_text(resolve_source(str(path), "dataset"), None, Path("data/.downloads"), documents="file")
        vocabulary = model.config.vocab_size
        texts.append(evaluation_windows(found, tokenizer, seqlen=512, vocab_size=vocabulary, windows=evaluated))
    windows, _ = read_windows(Path("data/calibration/tokens.arrow"))
    calibration = zpruner.calibrate(model, windows, for_methods=BEST, stats=())
    columns = ["order", *KINDS, "news", *(path.stem for path in text or []), "processor seconds"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    dense = [f"{perplexity(model, ids, 4):.2f}" for ids in texts]
    print(f"| dense | {' | '.join(['-'] * len(KINDS) + dense)} | - |", flush=True)
    for name in only.split(","):
        known, start = replace(calibration, replaced={}), process_time()
        layers = zpruner.prune(model, known, method=VARIANTS[name], sparsity=pattern)
        seconds = process_time() - start
        errors = [[layer.layer_error for layer in layers if layer.name.endswith(kind)] for kind in KINDS]
        cells = [f"{sum(of_kind) / len(of_kind):.4f}" for of_kind in errors]
        cells += [f"{perplexity(model, ids, 4):.2f}" for ids in texts]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
        for layer in calibration.inventory.layers:
            set_parameters(model, layer, known.replaced[layer.name])
        put_back(model, calibration, layers.orders)


if __name__ == "__main__":
    typer.run(main)
