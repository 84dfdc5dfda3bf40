"""What is counted on the weights of a pruned model, in one pass over its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages._ordered import OrderedModel
from zpruner.artifacts.results import CHOSEN, Layer, Storage
from zpruner.artifacts.store import ArtifactReader
from zpruner.artifacts.work import Work
from zpruner.calibration import Activations
from zpruner.checkpoint import SolvedWeights
from zpruner.evaluate import layer_error, pack_sample, sample_bits, share_of_zeros, storage
from zpruner.model import PrunableLayer
from zpruner.patterns import Pattern
from zpruner.quantization import QuantizedLayer


@dataclass(frozen=True)
class LayerFacts:
    """Counts over all prunable layers.

    Attributes:
        layers: in the order of the model.
        bytes: what the model takes, as stored and in formats that leave zeros out.
        mask_sample: sampled bits of the mask.
        kept: layer name -> bool (out, in), of the layers whose scores are shown.
    """

    layers: tuple[Layer, ...]
    bytes: Storage
    mask_sample: str
    kept: dict[str, Tensor]


def shown_layers(activations: Activations) -> tuple[PrunableLayer, ...]:
    """Return the first and the last layer of the middle block: those whose scores are shown."""
    middle = [la for la in activations.layers if la.block == activations.inventory.n_blocks // 2]
    return tuple(dict.fromkeys((middle[0], middle[-1]))) if middle else ()


def measure_layers(
    work: Work,
    weights: Iterable[tuple[PrunableLayer, Tensor]],
    model: OrderedModel,
    pattern: Pattern,
    stored: Path,
    tables: int,
    solved: SolvedWeights | None,
    masks: ArtifactReader,
    step: Callable[[], None],
) -> LayerFacts:
    """Return the counts; layer errors that an interrupted run measured are taken from the journal.

    Args:
        work: the open work folder.
        weights: every layer in the model's order with its pruned weight (out, in), zeros in place.
        model: the unpruned one in the order of the variant: what layer errors are measured with.
        pattern: of the variant.
        stored: a folder with tensors of the same shapes and types: the variant's checkpoint, or the dense one.
        tables: bytes of them that a token does not read (`zpruner.model.table_bytes`).
        solved: integers and biases of the variant; None where it has none that its weights do not tell.
        masks: of the variant: they come with what their solver chose.
        step: called after each layer.
    """
    activations = model.activations
    entries: list[Layer] = []
    bits: list[NDArray[np.bool_]] = []
    kept: dict[str, Tensor] = {}
    shown = shown_layers(activations)
    total = sum(layer.in_features * layer.out_features for layer in activations.layers)

    def shift(layer: PrunableLayer, device: torch.device) -> Tensor | None:
        bias = None if solved is None else model.bias(layer)
        if solved is None or bias is None:
            return None
        gained = solved.read_bias(layer, bias).float() - bias.float()
        return gained.to(device) if bool(gained.any()) else None

    def measured() -> Iterator[tuple[Tensor, QuantizedLayer | None]]:
        for layer, pruned in weights:
            found = work.done(layer.name)
            if found is None:
                stats = model.stats(layer).to(pruned.device)
                entry = Layer(
                    layer=layer.name,
                    block=layer.block,
                    kind=layer.kind,
                    weights=pruned.numel(),
                    sparsity=share_of_zeros([pruned]),
                    layer_error=layer_error(
                        model.weight(layer).to(pruned.device), pruned, stats, shift(layer, pruned.device)
                    ),
                    expert_tokens=activations.few.get(layer.name),
                    **{name: masks.files[layer.name].get(name) for name in CHOSEN},
                )
                work.record(layer.name, entry.model_dump())
            else:
                entry = Layer.model_validate(found)
            entries.append(entry)
            bits.append(sample_bits(layer, model.order.before(layer, pruned), total))
            if layer in shown:
                kept[layer.name] = pruned != 0
            yield pruned, None if solved is None else solved.read_quantized(layer.name)
            step()

    size = storage(stored, measured(), pattern, tables)
    return LayerFacts(tuple(entries), size, pack_sample(bits), kept)
