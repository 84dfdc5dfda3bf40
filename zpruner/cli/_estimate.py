"""What a run leaves on disk, from the model's shapes, and what stages have taken here before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zpruner.artifacts.costs import Cost
from zpruner.artifacts.layout import Layout
from zpruner.pruning.composition import statistics_of
from zpruner.settings.texts import SELF
from zpruner.types import Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zpruner.model import Inventory, PrunableLayer
    from zpruner.pruning.composition import Composition
    from zpruner.settings.params import Params

_DETAILS = 200_000
"""Bytes of a variant's results: every layer's numbers, window losses, histograms."""


@dataclass(frozen=True)
class Shapes:
    """What of a model decides sizes on disk: layers, all parameters, widths of distinct inputs, bytes of a weight.

    `model` has no weights.
    """

    model: PreTrainedModel
    inventory: Inventory
    parameters: int
    inputs: tuple[int, ...]
    longest: int | None
    """The most tokens that it takes at once; None: any number."""
    itemsize: int

    @property
    def layers(self) -> tuple[PrunableLayer, ...]:
        """The prunable layers."""
        return self.inventory.layers

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return sum(layer.in_features * layer.out_features for layer in self.layers)


def read_shapes(params: Params, root: Path) -> Shapes | None:
    """Return the shapes of the fetched or local model, whose weights are not read; None where there is neither.

    Raises:
        SourceError, ModelStructureError: it cannot be fetched: as `open_checkpoint` and `check_header`.
    """
    from zpruner.model import limits_of, open_checkpoint, take_inventory
    from zpruner.model.gguf_header import check_header
    from zpruner.sources import LocalPath, parse_source

    source = parse_source(params.model.source)
    folders = [Layout(root).dense]
    if isinstance(source, LocalPath):
        folders.append(root / source.path)
        if (root / source.path).is_file():
            check_header(root / source.path)
    folder = next((path for path in folders if (path / "config.json").is_file()), None)
    if folder is None:
        return None
    opened = open_checkpoint(folder, params.model.dtype, trust_remote_code=params.model.trust_remote_code)
    inventory = take_inventory(opened.model, params.model.blocks, params.model.ignore)
    # Which layers share an input only a forward pass tells; layers of one parent module and width usually do.
    groups = {(layer.name.rpartition(".")[0], layer.in_features) for layer in inventory.layers}
    parameters = sum(p.numel() for p in opened.model.parameters())
    inputs = tuple(width for _, width in sorted(groups))
    longest = limits_of(opened.model.config)[1]
    return Shapes(opened.model, inventory, parameters, inputs, longest, opened.dtype.itemsize)


@dataclass(frozen=True)
class Estimate:
    """One stage: the labels of its instances, and the bytes that all of them leave on disk."""

    stage: str
    instances: tuple[tuple[str, ...], ...]
    disk: int


def estimate(params: Params, compositions: Mapping[str, Composition], shapes: Shapes) -> Iterator[Estimate]:
    """Yield the stages in order.

    Args:
        params: the settings.
        compositions: label -> composition.
        shapes: of the model.
    """
    calibration, weights = params.calibration, shapes.prunable
    pruned = calibration.propagation == "pruned"
    variants = tuple((method, sparsity) for method in compositions for sparsity in params.sparsities)
    checkpoint = shapes.parameters * shapes.itemsize
    yield Estimate("fetch", (("model",), ("calibration",), ("evaluation",)), checkpoint)

    if any(source.source == SELF for source in calibration.sources):
        yield Estimate("generate", ((),), 4 * calibration.nsamples * calibration.seqlen)

    needed = statistics_of(compositions.values(), calibration.propagation)
    squares = Stat.GRAM in needed if calibration.gram == "auto" else calibration.gram
    # Per input channel: two float64 sums and a float32 maximum; a Gram matrix is float32.
    statistics = sum(20 * width + 4 * width * width * squares for width in shapes.inputs)
    yield Estimate("calibrate", ((),), statistics)
    if any(Stat.GRAD_SQ in composition.needs for composition in compositions.values()):
        yield Estimate("gradients", ((),), 4 * weights)

    # Pruned propagation and solvers find scores in the mask stage, and keep none.
    scored = 0 if pruned else sum(not composition.solves for composition in compositions.values())
    yield Estimate("score", tuple((method,) for method in compositions), scored * 4 * weights)
    masks = len(variants) * -(-weights // 8)
    solved = sum(
        pruned or compositions[method].ahead(shapes.layers, params.pattern(sparsity)) for method, sparsity in variants
    )
    yield Estimate("mask", variants, masks + solved * weights * shapes.itemsize)
    kept = sum(params.keeps_checkpoint(*variant) for variant in variants)
    yield Estimate("apply", variants, kept * checkpoint)
    yield Estimate("evaluate", (("dense",), *variants), (1 + len(variants)) * _DETAILS)


def estimate_table(
    params: Params, compositions: Mapping[str, Composition], shapes: Shapes, root: Path
) -> Iterator[str]:
    """Yield the stages as lines: disk by shapes; seconds and memory as far as instances have run here before."""
    estimates = list(estimate(params, compositions, shapes))
    yield f"{'stage':<10} {'runs':>5} {'disk':>10} {'seconds':>9} {'memory':>10}  measured before"
    total, known = 0.0, True
    for entry in estimates:
        before = measured(root, entry)
        known = known and bool(before)
        # Those that have not run yet as the others did on average.
        seconds = sum(cost.seconds for cost in before) / len(before) * len(entry.instances) if before else 0.0
        total += seconds
        memory = _size(max(cost.peak_memory_bytes for cost in before)) if before else "?"
        yield (
            f"{entry.stage:<10} {len(entry.instances):>5} {_size(entry.disk):>10} "
            f"{_about(seconds) if before else '?':>9} {memory:>10}  {len(before)} of {len(entry.instances)} runs"
        )
    yield f"{'all':<10} {'':>5} {_size(sum(e.disk for e in estimates)):>10} {_about(total) if known else '?':>9}"
    yield ""
    yield "Seconds and memory are those of earlier runs in this folder, whatever their settings: ? before the first."
    yield "Disk doubles where DVC must copy (cache.type)."


def measured(root: Path, entry: Estimate) -> list[Cost]:
    """Return what the instances of a stage that have run here took when they last did, from data/costs."""
    folder = Layout(root).costs()
    names = ["/".join((entry.stage, *labels)) for labels in entry.instances]
    return [Cost.read(path, "dvc repro") for name in names if (path := folder / f"{name}.json").is_file()]


def _about(seconds: float) -> str:
    """Return two figures."""
    return f"{float(f'{seconds:.1e}'):,.0f}" if seconds >= 10 else f"{seconds:.1f}"


def _size(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
