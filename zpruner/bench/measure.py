"""Models side by side: sizes, and speeds measured in turns in one process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from zpruner.bench.control import bandwidth, control, linear_names, packed_layers, read_per_token, torch_int8
from zpruner.errors import InvalidSettingError
from zpruner.kernels import Codes, choose
from zpruner.model.config import is_packed
from zpruner.model.load import load_model
from zpruner.packed.linear import restore_dense
from zpruner.runtime import pages

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKED, CONTROL, TORCH = "packed", "dense, control kernels", "dense, torch"
INT8, INT4, TORCH_INT8 = "dense int8, control kernels", "dense int4, control kernels", "dense int8, torch"
QUANTIZED = {INT8: Codes(8, 0), INT4: Codes(4, 32)}
"""Rows of the control kernels with integers -> these: a scale per row, and one for 32 weights."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        new_tokens: generated per run, one after another.
        prompt: tokens before them.
        prefill: tokens of the prompt that is computed at once.
        rounds: runs of every row, in turns.
        quantized: whether the first model's weights are measured as dense int8 and int4, too.
    """

    new_tokens: int = 32
    prompt: int = 8
    prefill: int = 512
    rounds: int = 5
    quantized: bool = False


@dataclass(frozen=True)
class Row:
    """One way to run one model.

    Attributes:
        model: its folder.
        how: packed, or which control.
        disk: bytes of its weights' files; None for a control that is no file.
        read: bytes of weights that one token reads.
        memory: peak resident bytes of a process that loads it and computes one token; None where not measured.
        decode, prefill: tokens a second, of every round.
    """

    model: str
    how: str
    disk: int | None
    read: int
    memory: int | None
    decode: tuple[float, ...]
    prefill: tuple[float, ...]


@dataclass(frozen=True)
class Bench:
    """All rows, and what they were measured with.

    Attributes:
        kernels: what multiplied, in words.
        threads: of torch and of the kernels.
        bandwidth: bytes a second that the kernels read from memory.
        plan: what was measured.
        rows: at least one per model.
    """

    kernels: str
    threads: int
    bandwidth: float
    plan: Plan
    rows: tuple[Row, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def bench(
    folders: Iterable[Path], plan: Plan, *, memory: bool = True, step: Callable[[], None] = lambda: None
) -> Bench:
    """Measure models: a packed one as it is and with its zeros, by torch and by the kernels; a dense one both ways.

    The zeros of packed integers are met among integers of as many bits.

    Rows take turns, so that whatever else the machine does meets all of them. The numbers of a row are of the same
    rounds as those of the others: compare them pair by pair.

    Args:
        folders: checkpoints, packed or not.
        plan: what is measured.
        memory: whether processes are started to see how much memory each takes.
        step: called after every run, for progress.

    Raises:
        InvalidSettingError: no folder.
        SourceError, ArtifactError, ModelStructureError: as `load_model`.
    """
    named = list(folders)
    if not named:
        raise InvalidSettingError("bench", "no model", "one or more checkpoint folders", "Name some.")
    rows = [row for number, folder in enumerate(named) for row in _rows(folder, plan.quantized and not number)]
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in rows]
    for turn in range(plan.rounds + 1):
        for (_, _, model), (decode, prefill) in zip(rows, times, strict=True):
            found = _decode(model, plan), _prefill(model, plan)
            if turn:  # the first warms up
                decode.append(found[0])
                prefill.append(found[1])
            step()
    measured = [
        Row(
            folder.name,
            how,
            weight_bytes(folder) if how == (PACKED if is_packed(folder) else TORCH) else None,
            read_per_token(model),
            peak_memory(folder) if memory and how == (PACKED if is_packed(folder) else TORCH) else None,
            tuple(decode),
            tuple(prefill),
        )
        for (folder, how, model), (decode, prefill) in zip(rows, times, strict=True)
    ]
    return Bench(choose().why, torch.get_num_threads(), bandwidth(), plan, tuple(measured))


def row_count(folders: Iterable[Path], quantized: bool = False) -> int:
    """Return how many rows `bench` measures."""
    return sum(3 if is_packed(folder) else 2 for folder in folders) + 3 * quantized


def weight_bytes(folder: Path) -> int:
    """Return the bytes of a checkpoint's weights' files."""
    stem = "zpruner" if is_packed(folder) else "model"
    return sum(path.stat().st_size for path in folder.glob(f"{stem}*.safetensors"))


_MEMORY = """
import resource, sys, torch, zpruner
model, _ = zpruner.load(sys.argv[1], device="cpu")
with torch.no_grad():
    model(input_ids=torch.ones(1, 1, dtype=torch.long))
try:  # ru_maxrss counts what the parent held when it forked
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024)
except FileNotFoundError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def peak_memory(folder: Path) -> int:
    """Return the most resident bytes of a process that loads a model and computes one token."""
    done = subprocess.run([sys.executable, "-c", _MEMORY, str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def _rows(folder: Path, quantized: bool) -> list[tuple[Path, str, PreTrainedModel]]:
    model = load_model(folder, device="cpu")
    found, dense = [], model
    if is_packed(folder):
        found, layers = [(folder, PACKED, model)], packed_layers(model)
        dense = load_model(folder, device="cpu")
        restore_dense(dense)
    else:
        layers = dict.fromkeys(linear_names(model))
    for tensor in dense.parameters():  # where those of a packed model lie: rows differ in what is said, in nothing else
        tensor.data = pages.copied(tensor.data)
    found += [(folder, CONTROL, control(dense, layers)), (folder, TORCH, dense)]
    if quantized:
        found += [(folder, how, control(dense, dict.fromkeys(layers, codes))) for how, codes in QUANTIZED.items()]
        found.append((folder, TORCH_INT8, torch_int8(dense, layers)))
    return found


def _decode(model: PreTrainedModel, plan: Plan) -> float:
    ids = torch.arange(3, 3 + plan.prompt).unsqueeze(0)
    count = plan.new_tokens
    generator: Any = model
    start = perf_counter()
    with torch.no_grad():
        generator.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            pad_token_id=0,
        )
    return count / (perf_counter() - start)


def _prefill(model: PreTrainedModel, plan: Plan) -> float:
    size = min(plan.prefill, getattr(model.config.get_text_config(), "max_position_embeddings", plan.prefill))
    ids = torch.arange(size).unsqueeze(0) % 97 + 3
    start = perf_counter()
    with torch.no_grad():
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return size / (perf_counter() - start)
