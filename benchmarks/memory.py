"""Peak memory of every stage on a model bigger than it: random weights go through the whole pipeline.

    python benchmarks/memory.py [--layers 27] [--hidden 3072] [--work FOLDER] [--solver]

Writes a checkpoint of about 3 billion bfloat16 parameters shard by shard, then runs fetch, calibrate, score, mask,
apply and evaluate, each in its own process, with weights read block by block, and prints the peak resident memory
of each against the size of the checkpoint. `--solver` is what takes most memory: Gram matrices, and SparseGPT with its
weight update under pruned propagation. Needs about 6 times the checkpoint's size on disk; all of it is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import typer
from safetensors.torch import save_file

from stages._project import Project
from zpruner.text import write_windows

REPOSITORY = Path(__file__).resolve().parent.parent


def build(folder: Path, hidden: int, layers: int) -> None:
    """Write a Llama-shaped checkpoint with random weights, one file per block."""
    folder.mkdir(parents=True)
    inner, vocabulary, heads = hidden * 8 // 3, 32000, hidden // 128
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    config |= {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    config |= {"num_attention_heads": heads, "num_key_value_heads": heads, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {f"self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
    shapes |= {f"mlp.{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (hidden, inner)}
    shapes |= {f"{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    units = [{f"model.layers.{i}.{name}": shape for name, shape in shapes.items()} for i in range(layers)]
    units += [{"model.embed_tokens.weight": (vocabulary, hidden)}, {"lm_head.weight": (vocabulary, hidden)}]
    units += [{"model.norm.weight": (hidden,)}]
    generator = torch.Generator().manual_seed(0)
    for number, unit in enumerate(units, start=1):
        tensors = {
            name: torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
            if len(shape) > 1
            else torch.ones(shape, dtype=torch.bfloat16)
            for name, shape in unit.items()
        }
        save_file(tensors, folder / f"model-{number:05d}-of-{len(units):05d}.safetensors", {"format": "pt"})


def build_apart(folder: Path, hidden: int, layers: int) -> int:
    """Build in its own process: a stage's peak is counted from that of the process that starts it."""
    child = os.fork()
    if child == 0:
        build(folder, hidden, layers)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the checkpoint could not be written")
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def settings(solver: bool, batch_size: int) -> dict[str, object]:
    """Return params.yaml: one variant, everything read block by block."""
    method = {"score": "sparsegpt", "update": "obs"} if solver else {"score": "wanda", "group": "row"}
    propagation = "pruned" if solver else "dense"
    text = {"source": "none.txt", "seqlen": 64, "batch_size": batch_size}
    return {
        "model": {"source": "model", "streaming": "always"},
        "calibration": {**text, "nsamples": 4, "gram": solver, "propagation": propagation},
        "methods": {"method": method},
        "sparsities": {"s50": 0.5},
        "evaluation": {"perplexity": {**text, "divergence": 1}},
    }


def peak_of(command: list[str], root: Path) -> tuple[int, float]:
    """Run a stage in its own process; return its peak resident memory in bytes and its seconds."""
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    start = perf_counter()
    child = subprocess.Popen([sys.executable, "-m", *command], cwd=root, env=os.environ | {"PYTHONPATH": path})
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), perf_counter() - start


def main(
    layers: Annotated[int, typer.Option(min=2)] = 27,
    hidden: Annotated[int, typer.Option(help="A multiple of 384.")] = 3072,
    solver: Annotated[bool, typer.Option(help="Gram matrices, SparseGPT and pruned propagation.")] = False,
    work: Annotated[Path | None, typer.Option(help="Where the temporary folder is made.")] = None,
) -> None:
    """Print the table."""
    variant = ["--method", "method", "--sparsity", "s50"]
    stages = {
        "fetch": ["stages.fetch", "model"],
        "calibrate": ["stages.calibrate"],
        "score": ["stages.score", "--method", "method"],
        "mask": ["stages.mask", *variant],
        "apply": ["stages.apply", *variant],
        "evaluate": ["stages.evaluate", *variant],
    }
    with tempfile.TemporaryDirectory(dir=work) as folder:
        root = Path(folder)
        size = build_apart(root / "model", hidden, layers)
        (root / "params.yaml").write_text(json.dumps(settings(solver, batch_size=2)))
        ids = torch.randint(0, 32000, (4, 64), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
        for name in ("calibration", "evaluation"):
            project = Project.open(root)
            origin = project.windows_origin(name, project.open_dense())
            write_windows(project.tokens(name), ids, "random", origin)
        idle, _ = peak_of(["stages.check"], root)
        print(f"\ncheckpoint {size / 1e9:.2f} GB, {size / 2e9:.2f} billion parameters, {layers} blocks\n")
        print("| stage | peak resident memory | of the checkpoint | seconds |\n|---|--:|--:|--:|")
        for stage, command in stages.items():
            peak, seconds = peak_of(command, root)
            print(f"| {stage} | {peak / 1e9:.2f} GB | {peak / size:.0%} | {seconds:.0f} |", flush=True)
            if stage == "fetch":
                shutil.rmtree(root / "model")
        print(f"\nA process that has only imported its libraries takes {idle / 1e9:.2f} GB. torch {torch.__version__}.")


if __name__ == "__main__":
    typer.run(main)
