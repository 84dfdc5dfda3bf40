"""What a run will take, from the model's shapes and a short measurement of this machine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from zpruner.artifacts.results import Cost
from zpruner.pruning.composition import statistics_of
from zpruner.types import Stat

if TYPE_CHECKING:
    from zpruner.model import PrunableLayer
    from zpruner.pruning.composition import Composition
    from zpruner.settings.params import Params

_START = 4.0
"""Seconds that a process takes to import what it needs."""
_PROCESS = 5e8
"""Bytes of a process that has imported torch and transformers."""
_BYTES_PER_SECOND = 4e8
"""Of reading, checking and writing artifacts (measured: 3 to 6e8 on two cores)."""


@dataclass(frozen=True)
class Shapes:
    """What of a model decides its cost: prunable layers, all parameters, widths of distinct inputs, vocabulary."""

    layers: tuple[PrunableLayer, ...]
    n_blocks: int
    parameters: int
    inputs: tuple[int, ...]
    vocab: int
    longest: int | None
    """The most tokens that it takes at once; None: any number."""
    itemsize: int

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return sum(layer.in_features * layer.out_features for layer in self.layers)


def read_shapes(params: Params, root: Path) -> Shapes | None:
    """Return the shapes of the fetched or local model, built without weights; None where there is neither."""
    from zpruner.model import empty_model, limits_of, take_inventory
    from zpruner.sources import LocalPath, parse_source

    source = parse_source(params.model.source)
    folders = [root / "data" / "models" / "dense"]
    folders += [root / source.path] if isinstance(source, LocalPath) else []
    folder = next((path for path in folders if (path / "config.json").is_file()), None)
    if folder is None:
        return None
    model = empty_model(folder, trust_remote_code=params.model.trust_remote_code)
    inventory = take_inventory(model, params.model.blocks, params.model.ignore)
    # Which layers share an input only a forward pass tells; layers of one parent module and width usually do.
    groups = {(layer.name.rpartition(".")[0], layer.in_features) for layer in inventory.layers}
    itemsize = 4 if params.model.dtype == "float32" else 2
    if params.model.dtype == "auto":
        itemsize = torch.empty(0, dtype=model.config.dtype or torch.float32, device="cpu").element_size()
    parameters = sum(p.numel() for p in model.parameters())
    inputs = tuple(width for _, width in sorted(groups))
    return Shapes(inventory.layers, inventory.n_blocks, parameters, inputs, *limits_of(model.config), itemsize)


@dataclass(frozen=True)
class Estimate:
    """One stage: number of instances, bytes it leaves on disk, peak memory in bytes, seconds; all instances in all."""

    stage: str
    instances: int
    disk: float
    memory: float
    seconds: float


def estimate(
    params: Params, compositions: Mapping[str, Composition], shapes: Shapes, rate: Mapping[str, float]
) -> Iterator[Estimate]:
    """Yield the stages in order.

    Args:
        params: the settings.
        compositions: label -> composition.
        shapes: of the model.
        rate: `model` and `float32`: floating-point operations per second in the model's dtype and in float32.
    """
    calibration, text = params.calibration, params.evaluation.perplexity
    methods, sparsities = len(compositions), len(params.sparsities)
    variants = methods * sparsities
    checkpoint = shapes.parameters * shapes.itemsize
    yield Estimate("fetch", 3, checkpoint, _PROCESS + 2 * checkpoint, 3 * _START + 2 * checkpoint / _BYTES_PER_SECOND)

    tokens = calibration.nsamples * calibration.seqlen
    needed = statistics_of(compositions.values(), calibration.propagation)
    squares = Stat.GRAM in needed if calibration.gram == "auto" else calibration.gram
    grams = sum(width * width for width in shapes.inputs) if squares else 0
    disk = 4 * grams + 20 * sum(shapes.inputs)
    seconds = 2 * shapes.prunable * tokens / rate["model"] + 2 * grams * tokens / rate["model"]
    hidden = calibration.batch_size * calibration.seqlen * max(shapes.inputs) * 16
    yield Estimate(
        "calibrate",
        1,
        disk,
        _PROCESS + 2 * checkpoint + disk + hidden,
        _START + seconds + (disk + checkpoint) / _BYTES_PER_SECOND,
    )

    if any(Stat.GRAD_SQ in composition.needs for composition in compositions.values()):
        tokens = calibration.nsamples * calibration.seqlen  # forward, recomputed forward, both halves of backward
        logits = 3 * calibration.seqlen * shapes.vocab * 4
        yield Estimate(
            "gradients",
            1,
            4 * shapes.prunable,
            _PROCESS + 2 * checkpoint + 4 * shapes.prunable + logits,
            _START + 8 * shapes.parameters * tokens / rate["model"] + 4 * shapes.prunable / _BYTES_PER_SECOND,
        )

    weights, largest = shapes.prunable, max(la.in_features * la.out_features for la in shapes.layers)
    deferred = [c for c in compositions.values() if c.solves]
    scored = methods - len(deferred)
    layer_memory = _PROCESS + 12 * largest + 8 * max(shapes.inputs) ** 2
    yield Estimate(
        "score",
        methods,
        scored * 4 * weights,
        layer_memory,
        methods * _START + scored * 8 * weights / _BYTES_PER_SECOND,
    )

    masks = variants * weights / 8
    passes = 4 * weights / _BYTES_PER_SECOND * variants + variants * _START
    yield Estimate(
        "mask", variants, masks, layer_memory, passes + _solving(compositions, shapes, rate, "mask") * sparsities
    )

    passes = 2 * checkpoint / _BYTES_PER_SECOND * variants + variants * _START
    yield Estimate(
        "apply",
        variants,
        variants * checkpoint,
        layer_memory + checkpoint / max(shapes.n_blocks, 1),
        passes + _solving(compositions, shapes, rate, "apply") * sparsities,
    )

    windows = text.windows or 150
    tokens, runs = windows * text.seqlen, variants + 1
    logits = text.batch_size * text.seqlen * shapes.vocab * shapes.itemsize + 3 * text.seqlen * shapes.vocab * 4
    forward = 2 * shapes.parameters * tokens / rate["model"] + 12 * tokens * shapes.vocab / _BYTES_PER_SECOND / 4
    errors = (
        sum(2 * 2 * la.out_features * la.in_features**2 for la in shapes.layers) / rate["float32"] if grams else 0.0
    )
    yield Estimate(
        "evaluate",
        runs,
        runs * 2e5,
        _PROCESS + 2 * checkpoint + logits,
        runs * (_START + forward + checkpoint / _BYTES_PER_SECOND) + variants * errors,
    )


def _solving(compositions: Mapping[str, Composition], shapes: Shapes, rate: Mapping[str, float], stage: str) -> float:
    """Return the seconds of everything that solves with Hessians at one sparsity, counted as dense factorisations."""
    seconds = 0.0
    for composition in compositions.values():
        parts: list[bool] = [composition.update is not None]
        if stage == "mask":
            parts = [composition.refinement is not None, composition.solves]
        for layer in shapes.layers:
            flops = 4 * layer.in_features**3 + 4 * layer.out_features * layer.in_features**2
            seconds += sum(parts) * flops / rate["float32"]
    return seconds


def measure_rates(itemsize: int, seconds: float = 0.3) -> dict[str, float]:
    """Return floating-point operations per second of matrix products in the model's dtype and in float32."""
    return {
        "model": _rate(torch.bfloat16 if itemsize == 2 else torch.float32, seconds),
        "float32": _rate(torch.float32, seconds),
    }


def _rate(dtype: torch.dtype, seconds: float) -> float:
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    a @ b
    count, start = 0, perf_counter()
    while perf_counter() - start < seconds:
        a @ b
        count += 1
    # Layers are smaller than this product and do more than multiply: about half of its rate is reached.
    return 0.5 * count * 2 * 512 * 1024 * 1024 / (perf_counter() - start)


def estimate_table(
    params: Params, compositions: Mapping[str, Composition], shapes: Shapes, root: Path
) -> Iterator[str]:
    """Yield the estimates as lines; where a stage has run here before, its measured time stands beside."""
    estimates = list(estimate(params, compositions, shapes, measure_rates(shapes.itemsize)))
    yield f"{'stage':<10} {'runs':>5} {'disk':>10} {'memory':>10} {'seconds':>9}  measured before"
    for entry in estimates:
        before = measured(root, entry.stage)
        yield (
            f"{entry.stage:<10} {entry.instances:>5} {_size(entry.disk):>10} {_size(entry.memory):>10} "
            f"{_about(entry.seconds):>9}  {before}"
        )
    disk, memory = sum(e.disk for e in estimates), max(e.memory for e in estimates)
    yield f"{'all':<10} {'':>5} {_size(disk):>10} {_size(memory):>10} {_about(sum(e.seconds for e in estimates)):>9}"
    yield ""
    yield "Estimates within a factor of about two, one stage at a time. Disk doubles where DVC must copy (cache.type)."


def measured(root: Path, stage: str) -> str:
    """Return the seconds that all instances of a stage took when they last ran, from data/costs; empty if never."""
    costs = root / "data" / "costs"
    files = [*costs.glob(f"{stage}.json"), *sorted((costs / stage).rglob("*.json"))]
    seconds = [Cost.read(path, "dvc repro").seconds for path in files]
    return f"{sum(seconds):.0f} s in {len(seconds)} runs" if seconds else ""


def _about(seconds: float) -> str:
    return f"{float(f'{seconds:.1e}'):,.0f}" if math.isfinite(seconds) else "?"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
