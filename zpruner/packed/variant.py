"""What the pipeline knows of a variant's weights: which are kept, and the integers and scales that they are made of."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from zpruner.artifacts.store import ArtifactReader, Provenance
from zpruner.checkpoint import Checkpoint, SolvedWeights
from zpruner.checkpoint.masks import read_mask
from zpruner.model import PrunableLayer, take_inventory
from zpruner.model.empty import empty_model
from zpruner.packed.content import Known
from zpruner.packed.masks import StoredIntegers, StoredLayers, StoredMasks
from zpruner.packed.structure import transposed_tensors
from zpruner.quantization import QuantizedLayer


def known_of_variant(
    pruned: Checkpoint,
    masks: Path,
    solved: Path,
    expected: Provenance,
    *,
    blocks: str | None = None,
    ignore: Iterable[str] = (),
    trust_remote_code: bool = False,
) -> Known:
    """Return what `pack` asks for, from the artifacts that the variant was made from.

    Args:
        pruned: its checkpoint.
        masks: folder of its masks.
        solved: folder of its solved weights; without any where none were solved ahead.
        expected: provenance that both must have; empty fields are not compared.
        blocks, ignore: as `take_inventory`.
        trust_remote_code: whether code in the checkpoint may run.

    Raises:
        ArtifactError: masks or solved weights that are missing, damaged or of another variant.
        SourceError, ModelStructureError: as `empty_model` and `take_inventory`.
    """
    kept, found = ArtifactReader(masks, "masks", expected), SolvedWeights(solved, expected)
    empty = empty_model(pruned.folder, trust_remote_code=trust_remote_code)
    layers = StoredLayers(pruned, take_inventory(empty, blocks, ignore).layers)

    def mask_of(layer: PrunableLayer) -> Tensor:
        return read_mask(kept, layer).keep

    def integers_of(layer: PrunableLayer) -> QuantizedLayer | None:
        return found.read_quantized(layer.name) if layer.name in found.quantized else None

    transposed = transposed_tensors(pruned.folder, trust_remote_code=trust_remote_code)
    return Known(transposed, StoredMasks(layers, mask_of), StoredIntegers(layers, integers_of))
