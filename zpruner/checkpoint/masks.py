"""Masks on disk, read layer by layer."""

from __future__ import annotations

import torch

from zpruner.artifacts.store import ArtifactReader
from zpruner.errors import MEND, ArtifactError
from zpruner.model import PrunableLayer
from zpruner.types import Mask


def read_mask(masks: ArtifactReader, layer: PrunableLayer) -> Mask:
    """Return one layer's mask from a mask artifact.

    Raises:
        ArtifactError: missing, damaged, of another shape, or with other counts than the index says.
    """
    mask = Mask(layer.name, masks.read_matrix(layer.name, "keep", torch.bool, layer.shape))
    facts = masks.files[layer.name]
    counts = {"kept": int(mask.keep.sum()), "weights": mask.keep.numel()}
    if {key: facts.get(key) for key in counts} != counts:
        raise ArtifactError(str(masks.folder), f"{layer.name} with {counts}", "the counts in its index", MEND)
    return mask
