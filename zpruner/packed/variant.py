"""What the pipeline knows of a variant's weights: which are kept, and the integers and scales that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from zpruner.patterns import StructuredPattern, parse_pattern
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
    layers = take_inventory(empty, blocks, ignore).layers
    stored = StoredLayers(pruned, layers)
    transposed = transposed_tensors(pruned.folder, trust_remote_code=trust_remote_code)
    if isinstance(parse_pattern(kept.provenance.pattern), StructuredPattern):
        return Known(transposed, integers=StoredIntegers(stored, _smaller(layers, found)))

    def mask_of(layer: PrunableLayer) -> Tensor:
        return read_mask(kept, layer).keep

    def integers_of(layer: PrunableLayer) -> QuantizedLayer | None:
        return found.read_quantized(layer.name) if layer.name in found.quantized else None

    return Known(transposed, StoredMasks(stored, mask_of), StoredIntegers(stored, integers_of))


def counterparts(whole: Iterable[str], smaller: Iterable[str]) -> dict[str, str]:
    """Return what each layer of a model without some of its blocks or experts was called: its name -> the old one.

    Those that stay are numbered anew, and keep their order.

    Args:
        whole: names in the whole model of the layers that stay.
        smaller: names in the smaller one.

    Raises:
        ValueError: not as many.
    """
    return dict(zip(sorted(smaller, key=_natural), sorted(whole, key=_natural), strict=True))


def _smaller(
    layers: Iterable[PrunableLayer], solved: SolvedWeights
) -> Callable[[PrunableLayer], QuantizedLayer | None]:
    """Return what reads the integers of layers of a model that lost structures, which are stored of the whole one."""

    def read(name: str) -> QuantizedLayer:
        found = solved.read_quantized(name)
        assert found is not None
        return found

    stay = [name for name in solved.quantized if read(name).keep.any()]
    old = counterparts(stay, (layer.name for layer in layers)) if stay else {}
    return lambda layer: read(old[layer.name]).compact() if layer.name in old else None


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a key by which parts of a path that are numbers are ordered as such."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]
