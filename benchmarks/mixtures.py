"""What calibration texts are worth: a method on mixtures of the news and text that the model writes itself.

    python benchmarks/mixtures.py --text articles.txt
    python benchmarks/mixtures.py --method wanda --pattern 2:4 --only "news,half self"

Prunes the default model on statistics of the dense model, as many windows of every mixture, and prints the perplexity
on the search's part of the news, which neither calibration nor evaluation reads, and on other texts. Needs
`dvc repro fetch@model` to have run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import process_time
from typing import Annotated, Any

import typer

import zpruner
from zpruner.runtime.allocator import keep_freed_memory
from zpruner.settings.reading import read_params
from zpruner.sources import read_text, resolve_source
from zpruner.text import evaluation_windows

DOWNLOADS = Path("data/.downloads")
NEWS = {"source": zpruner.NEWS, "documents": "lines", "part": (0.0, 0.5)}
MIXTURES: Mapping[str, list[dict[str, Any]]] = {
    "news": [NEWS],
    "half self": [NEWS, {"source": "self"}],
    "half self at temperature 1": [NEWS, {"source": "self", "temperature": 1.0, "top_p": 1.0}],
    "self": [{"source": "self"}],
}


def main(
    text: Annotated[list[Path] | None, typer.Option(help="Another text; may be given several times.")] = None,
    method: str = "best",
    pattern: str = "0.5",
    windows: Annotated[int, typer.Option(help="Calibration windows of 512 tokens.")] = 32,
    evaluated: Annotated[int, typer.Option(help="Windows of 512 tokens of each text.")] = 12,
    only: Annotated[str, typer.Option(help="Mixtures, separated by commas.")] = ",".join(MIXTURES),
) -> None:
    """Print one row per mixture as it is measured."""
    keep_freed_memory()
    model, tokenizer = zpruner.load("data/models/dense")
    held_out = read_params(Path("params.yaml")).the_search().text
    sources = [(held_out.source, held_out.documents, held_out.part)]
    evaluations = [
        evaluation_windows(
            read_text(resolve_source(source, "dataset"), None, DOWNLOADS, documents=documents),
            tokenizer,
            seqlen=512,
            vocab_size=model.config.vocab_size,
            windows=evaluated,
            part=part,
        )
        for source, documents, part in [*sources, *((str(path), "file", (0.0, 1.0)) for path in text or [])]
    ]
    columns = ["calibrated on", "news", *(path.stem for path in text or []), "processor seconds: text", "all else"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    row("(unpruned)", [zpruner.perplexity(model, ids) for ids in evaluations])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in only.split(","):
        start = process_time()
        ids = zpruner.load_windows(MIXTURES[name], model, tokenizer, nsamples=windows, downloads=DOWNLOADS)
        written = process_time()
        zpruner.prune(model, zpruner.calibrate(model, ids, for_methods=method), method=method, sparsity=pattern)
        pruned = process_time()
        row(name, [*(zpruner.perplexity(model, ids) for ids in evaluations), written - start, pruned - written])
        model.load_state_dict(state)


def row(name: str, values: list[float]) -> None:
    """Print a row."""
    print(f"| {' | '.join([name, *(f'{value:.2f}' for value in values)])} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
