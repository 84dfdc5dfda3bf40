"""What sequential pruning costs, as a multiple of two forward passes of the decoder: one to measure, one to continue.

    python benchmarks/sequential.py --count 8 --methods wanda,sparsegpt,best
    python benchmarks/sequential.py --count 32 --methods wanda,sparsegpt --peer PYTHON   # llm-compressor beside it

Processor time, in turns, the least of several rounds. Needs `dvc repro calibrate fetch@evaluation` to have run.
`--peer` names the Python of an environment of its own (`pip install llmcompressor==0.14.0`): llm-compressor takes no
transformers as new as the library's. It prunes in a process beside this one, in turns with it, on as many threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import TYPE_CHECKING, Annotated, Self

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

import zpruner
from zpruner.model.layers import find_blocks
from zpruner.pruning.presets import PRESETS
from zpruner.text import read_windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATION = Path("data/evaluation/tokens.arrow")
EVALUATED = 6
PEER, PEERS = ", llm-compressor", ("wanda", "sparsegpt")


def main(
    model: Path = Path("data/models/dense"),
    windows: Path = Path("data/calibration/tokens.arrow"),
    evaluation: Annotated[Path, typer.Option(help="Windows that show that both pruned alike.")] = EVALUATION,
    count: Annotated[int, typer.Option(help="Calibration windows.")] = 8,
    methods: str = "wanda,sparsegpt,best",
    measure: Annotated[str | None, typer.Option(help="block or submodule; else as each method's preset says.")] = None,
    blocks: Annotated[
        int | None, typer.Option(help="Prune the model's first blocks alone, without the others.")
    ] = None,
    sparsity: str = "0.5",
    rounds: int = 2,
    peer: Annotated[str, typer.Option(help="Also prune by the llm-compressor of this Python: wanda, sparsegpt.")] = "",
) -> None:
    """Print one row per method."""
    network, _ = zpruner.load(model)
    if blocks is not None:
        modules = network.get_submodule(find_blocks(network))
        assert isinstance(modules, torch.nn.ModuleList)
        del modules[blocks:]
        network.config.num_hidden_layers = blocks
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
        method = PRESETS[name] if measure is None else {**PRESETS[name], "measure": measure}
        zpruner.prune_sequentially(network, ids, method=method, sparsity=sparsity)

    texts = read_windows(evaluation)[0][:EVALUATED]
    perplexities: dict[str, float] = {}

    def run(name: str, call: Callable[[], object]) -> None:
        timed(name, call)
        if name not in perplexities:
            perplexities[name] = zpruner.perplexity(network, texts)
        with torch.no_grad():
            network.load_state_dict(state)

    with Peer(peer, model, ids, sparsity) if peer else nullcontext() as other:
        for _ in range(rounds):
            timed("forward", forward)
            for name in methods.split(","):
                run(name, lambda name=name: prune(name))
                if other is not None and name in PEERS:
                    seconds = other.prune(name, network)
                    best[f"{name}{PEER}"] = min(best[f"{name}{PEER}"], seconds)
                    perplexities[f"{name}{PEER}"] = zpruner.perplexity(network, texts)
                    with torch.no_grad():
                        network.load_state_dict(state)
    forwards, solver = 2 * best["forward"], best.get("sparsegpt", float("nan"))
    print(f"| method | seconds | two forward passes ({forwards:.1f} s) | SparseGPT | perplexity |")
    print("|---|--:|--:|--:|--:|")
    for name, found in perplexities.items():
        print(f"| {name} | {best[name]:.1f} | {best[name] / forwards:.2f} | {best[name] / solver:.2f} | {found:.2f} |")


class Peer:
    """llm-compressor in a process of another environment; see benchmarks/_peer.py."""

    def __init__(self, python: str, model: Path, ids: Tensor, sparsity: str) -> None:
        self._folder = TemporaryDirectory()
        windows = Path(self._folder.name) / "windows.safetensors"
        save_file({"ids": ids.long()}, windows)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("_peer.py")), str(model), str(windows), sparsity],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def prune(self, method: str, network: PreTrainedModel) -> float:
        """Give a model the weights that llm-compressor makes of its own copy; returns its processor seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        out = Path(self._folder.name) / "pruned.safetensors"
        self._process.stdin.write(json.dumps({"method": method, "out": str(out)}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("seconds "):
                network.load_state_dict(load_file(out), strict=False)
                return float(line.split()[1])
        sys.exit(f"error: llm-compressor ended with {self._process.wait()}.")


if __name__ == "__main__":
    typer.run(main)
