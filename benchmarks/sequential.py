"""What sequential pruning costs, as a multiple of two forward passes of the decoder: one to measure, one to continue.

    python benchmarks/sequential.py --count 8 --methods wanda,sparsegpt,best
    python benchmarks/sequential.py --count 32 --methods wanda,sparsegpt --peer   # llm-compressor beside it

Processor time, in turns in one process, the least of several rounds. Needs `dvc repro calibrate` to have run. `--peer`
wants an environment with both packages (`pip install . llmcompressor`): llm-compressor 0.14 takes no newer transformers
than 5.17, so the project's own environment cannot have it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from torch import Tensor

import zpruner
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATION = Path("data/evaluation/tokens.arrow")
EVALUATED = 6
PEER = ", llm-compressor"


def main(
    model: Path = Path("data/models/dense"),
    windows: Path = Path("data/calibration/tokens.arrow"),
    evaluation: Annotated[Path, typer.Option(help="Windows that show that both pruned alike.")] = EVALUATION,
    count: Annotated[int, typer.Option(help="Calibration windows.")] = 8,
    methods: str = "wanda,sparsegpt,best",
    measure: Annotated[str, typer.Option(help="block or submodule.")] = "block",
    sparsity: str = "0.5",
    rounds: int = 2,
    peer: Annotated[bool, typer.Option(help="Also prune by llm-compressor: wanda, sparsegpt.")] = False,
) -> None:
    """Print one row per method."""
    network, _ = zpruner.load(model)
    ids = read_windows(windows)[0][:count]
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    best: dict[str, float] = defaultdict(lambda: float("inf"))

    def timed(name: str, call: Callable[[], object]) -> None:
        start = process_time()
        call()
        best[name] = min(best[name], process_time() - start)

    def forward() -> None:
        with torch.no_grad():
            for batch in ids.split(8):
                network.base_model(input_ids=batch.long(), use_cache=False)

    def prune(name: str) -> None:
        method = {**PRESETS[name], "measure": measure}
        zpruner.prune_sequentially(network, ids, method=method, sparsity=sparsity)

    texts = read_windows(evaluation)[0][:EVALUATED]
    perplexities: dict[str, float] = {}

    def run(name: str, call: Callable[[], object]) -> None:
        timed(name, call)
        if name not in perplexities:
            perplexities[name] = zpruner.perplexity(network, texts)
        with torch.no_grad():
            network.load_state_dict(state)

    for _ in range(rounds):
        timed("forward", forward)
        for name in methods.split(","):
            run(name, lambda name=name: prune(name))
            if peer:
                run(f"{name}{PEER}", lambda name=name: compress(network, ids, name, float(sparsity)))
    forwards, solver = 2 * best["forward"], best.get("sparsegpt", float("nan"))
    print(f"| method | seconds | two forward passes ({forwards:.1f} s) | SparseGPT | perplexity |")
    print("|---|--:|--:|--:|--:|")
    for name, found in perplexities.items():
        print(f"| {name} | {best[name]:.1f} | {best[name] / forwards:.2f} | {best[name] / solver:.2f} | {found:.2f} |")


def compress(network: PreTrainedModel, ids: Tensor, name: str, sparsity: float) -> None:
    """Prune a model in place by llm-compressor, block after block on the same windows."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    kind = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[name]
    head = "re:.*lm_head"
    oneshot(
        model=network,
        dataset=Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}),
        recipe=[kind(sparsity=sparsity, mask_structure="0:0", targets=["Linear"], ignore=[head])],
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        batch_size=8,
        shuffle_calibration_samples=False,
    )


if __name__ == "__main__":
    typer.run(main)
