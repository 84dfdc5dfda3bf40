"""Tiny random models, a tokenizer trained on the spot, and whole tiny projects."""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from zpruner.model import take_inventory
from zpruner.types import CHANNEL_SUMS, Stat

REPOSITORY = Path(__file__).parent.parent
VOCABULARY = 160
WITH_GRAM = CHANNEL_SUMS | {Stat.GRAM}
WITH_GRADIENTS = CHANNEL_SUMS | {Stat.GRAD_SQ}
EVERY = WITH_GRAM | WITH_GRADIENTS


def llama(**changes: object) -> PreTrainedModel:
    """Three blocks, grouped-query attention, tied embeddings; 5 weight shapes, all different where they can be."""
    settings: dict[str, object] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes}))


def opt() -> PreTrainedModel:
    """Two blocks with biases and learned positions."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
    )
    return OPTForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """Two blocks whose weights are stored transposed (Conv1D)."""
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return GPT2LMHeadModel(config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {"llama": llama, "opt": opt, "gpt2": gpt2}


def build(family: str) -> PreTrainedModel:
    """Return a tiny float32 model with seeded weights of a size that makes its outputs differ."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
    return model


def in_memory(model: PreTrainedModel) -> set[str]:
    """The names of the tensors of a model that have memory."""
    return {name for name, tensor in model.state_dict(keep_vars=True).items() if not tensor.is_meta}


def last_hidden(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """What the last decoder block puts out, by a forward pass of the whole model."""
    inventory = take_inventory(model)
    found: list[Tensor] = []
    block = model.get_submodule(f"{inventory.blocks}.{inventory.n_blocks - 1}")

    def keep(_module: object, _args: object, result: Tensor | tuple[Tensor, ...]) -> None:
        found.append(result if isinstance(result, Tensor) else result[0])

    handle = block.register_forward_hook(keep)
    with torch.no_grad():
        model(input_ids=windows.long(), use_cache=False)
    handle.remove()
    return found[0]


def words(count: int, seed: int = 0) -> str:
    """Return `count` words of a little seeded language."""
    rng = random.Random(seed)
    stems = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 5))) for _ in range(60)]
    return " ".join(rng.choices(stems, weights=range(60, 0, -1), k=count))


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-pair encoding trained on `words`."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    bpe.train_from_iterator([words(2000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def save_checkpoint(folder: Path, family: str = "llama") -> Path:
    """Write a tiny model with its tokenizer as a checkpoint folder."""
    build(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


PARAMS: dict[str, Any] = {
    "model": {
        "source": "source/model",
        "sha256": None,
        "dtype": "auto",
        "blocks": None,
        "ignore": [],
        "trust_remote_code": False,
    },
    "machine": {"device": "auto", "streaming": "auto", "memory": None},
    "calibration": {
        "source": "source/text.txt",
        "sha256": None,
        "documents": "lines",
        "part": [0.0, 0.5],
        "sampling": "stream",
        "nsamples": 6,
        "seqlen": 32,
        "seed": 0,
        "batch_size": 2,
        "gram": True,
        "min_expert_tokens": 128,
        "propagation": "dense",
    },
    "methods": {"wanda": {"score": "wanda", "group": "row"}, "zpruner": {"score": "zpruner", "group": "layer"}},
    "sparsities": {"s50": 0.5, "s24": "2:4"},
    "evaluation": {
        "perplexity": {
            "source": "source/text.txt",
            "sha256": None,
            "documents": "lines",
            "part": [0.5, 1.0],
            "seqlen": 32,
            "windows": 6,
            "stride": None,
            "batch_size": 2,
            "protocol": None,
            "divergence": 2,
        },
        "zero_shot": None,
        "checkpoints": "all",
    },
}


def write_params(root: Path, params: Mapping[str, Any]) -> None:
    """Write params.yaml (JSON is YAML), and plan anew where stages have run without DVC."""
    (root / "params.yaml").write_text(json.dumps(params, indent=1), encoding="utf-8")
    if (root / "data" / "plan").exists() and not (root / "dvc.yaml").exists():
        plan(root)


def plan(root: Path) -> None:
    """Run what comes before every other stage: a look at the sources, and the plans."""
    from stages import plan, sources

    searching = read_params(root).get("search")
    sources.run(["model", "calibration", "evaluation", *(["search"] if searching else [])], root)
    plan.run(root)
    if searching:
        plan.run(root, search=True)


def read_params(root: Path) -> dict[str, Any]:
    """Read params.yaml."""
    return json.loads((root / "params.yaml").read_text(encoding="utf-8"))


def make_sources(root: Path, family: str = "llama") -> None:
    """Write params.yaml, a model and a text: all that the stages need."""
    save_checkpoint(root / "source" / "model", family)
    lines = [words(60, seed) for seed in range(20)]
    (root / "source" / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    write_params(root, PARAMS)


def make_project(root: Path, family: str = "llama") -> Path:
    """Make a git and DVC project with its own copy of the code, so that a test can change the code."""
    root.mkdir(parents=True, exist_ok=True)
    make_sources(root, family)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("zpruner", "stages", "flows", "tasks", "formulas", "search"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignore)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(REPOSITORY / name, root / name)
    run(["git", "init", "-q"], root)
    run(["dvc", "init", "-q"], root)
    shutil.copy(REPOSITORY / ".dvc" / "config", root / ".dvc" / "config")
    run(["git", "add", "."], root)
    run(["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "tiny"], root)
    return root


_SET_HERE = ("HF_XET_HIGH_PERFORMANCE", "KMP_DUPLICATE_LIB_OK", "TOKENIZERS_PARALLELISM")
"""What lm_eval, torch's compiler and the command line set in this process once they are used: children do without."""


def environment() -> dict[str, str]:
    """Return the environment for child processes: this interpreter's tools first, one thread, quiet, offline."""
    # A project's copy of the code is compiled once, not by every stage.
    apart = ("PYTEST_", "PYTHONDONTWRITE", *_SET_HERE)
    mine = {name: value for name, value in os.environ.items() if not name.startswith(apart)}
    return mine | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONWARNINGS": "",
    }


def run(command: list[str], root: Path, check: bool = True, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a project and return what it printed; a failure shows its output.

    `changes` are those of its environment.
    """
    variables = environment() | changes
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command} exited {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def repro(root: Path, *targets: str) -> list[str]:
    """Run `dvc repro` in the warm worker and return the stage instances that were executed, in order."""
    done = run(["dvc", "repro", *targets], root, PATH=warm_path())
    assert "plain start-up" not in done.stderr, done.stderr
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage '")]


@cache
def warm_path() -> str:
    """Return a PATH on which `python` is a warm worker; it is started once, and ends with this process."""
    say_and_wait = "import os, sys; print(os.environ['PATH'], flush=True); sys.stdin.read()"
    command = [sys.executable, "-m", "warm", sys.executable, "-c", say_and_wait]
    worker = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(worker.communicate)  # which closes what it waits for
    assert worker.stdout is not None
    return worker.stdout.readline().rstrip("\n")


def files_of(folder: Path, leave_out: Iterable[str] = ()) -> dict[str, bytes]:
    """Return every file below a folder with its bytes."""
    names = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith(tuple(leave_out))}
