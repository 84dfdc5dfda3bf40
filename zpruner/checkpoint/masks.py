"""Masks on disk, read layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from zpruner.artifacts.store import ArtifactReader
from zpruner.errors import MEND, ArtifactError
from zpruner.model import PrunableLayer
from zpruner.patterns import Pattern, SparsityPattern
from zpruner.types import Mask


def read_mask(masks: ArtifactReader, layer: PrunableLayer, order: Tensor | None = None) -> Mask:
    """Return one layer's mask from a mask artifact; `order`, int64 (in,), is that in which it is N:M, if not its own.

    Raises:
        ArtifactError: missing, damaged, of another shape, or with other counts than the index says.
    """
    mask = Mask(layer.name, masks.read_matrix(layer.name, "keep", torch.bool, layer.shape), order=order)
    facts = masks.files[layer.name]
    counts = {"kept": int(mask.keep.sum()), "weights": mask.keep.numel()}
    if {key: facts.get(key) for key in counts} != counts:
        raise ArtifactError(str(masks.folder), f"{layer.name} with {counts}", "the counts in its index", MEND)
    return mask


def require_pattern(masks: ArtifactReader, mask: Mask, pattern: Pattern) -> None:
    """Raise ArtifactError unless a mask keeps N of every M inputs, in its order, where the pattern is N:M."""
    if not isinstance(pattern, SparsityPattern) or pattern.group_size is None:
        return
    keep = mask.keep if mask.order is None else mask.keep[:, mask.order]
    counts = keep.unflatten(1, (-1, pattern.group_size)).sum(dim=2)
    if odd := (counts != pattern.kept).nonzero().tolist():
        row, group = odd[0]
        got = f"{mask.layer} with {int(counts[row, group])} of {pattern.group_size} inputs kept in row {row}"
        expected = f"{pattern}" if mask.order is None else f"{pattern} in the order that is stored of it"
        raise ArtifactError(str(masks.folder), got, expected, MEND)
