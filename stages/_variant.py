"""A variant's weights: from the dense ones, its mask, and the statistics that its weight update reads."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stages._project import Project
from zpruner.artifacts.store import ArtifactReader
from zpruner.checkpoint import Checkpoint, SolvedWeights
from zpruner.errors import MEND, ArtifactError
from zpruner.model import PrunableLayer, resolve_device
from zpruner.pruning.composition import compose
from zpruner.runtime.transfer import to_device, to_host
from zpruner.types import Mask


class Variant:
    """The masks of a method at a sparsity, and how they and the dense weights give the pruned weights.

    Args:
        project: with the artifacts of the stages up to mask.
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        dense: the unpruned checkpoint.

    Raises:
        ArtifactError: masks or statistics that are missing or belong to another variant or model.
    """

    def __init__(self, project: Project, method: str, sparsity: str, dense: Checkpoint) -> None:
        self._composition = compose(project.params.method(method))
        self._device = resolve_device(project.params.machine.device)
        expected = replace(project.variant(method, sparsity), model_hash=dense.model_hash)
        self.masks = ArtifactReader(project.masks(method, sparsity), "masks", expected)
        made_from = self.masks.provenance
        self.activations = project.open_activations(dense, made_from.calibration_hash)
        ahead = made_from.propagation == "pruned" or self._composition.rounding is not None
        own = replace(made_from, dtype=dense.dtype)  # the weights must be this very variant's
        self._solved = SolvedWeights(project.solved(method, sparsity), own) if ahead else None
        self.facts = {
            "role": "pruned",
            "method": method,
            "settings": expected.settings,
            "pattern": expected.pattern,
            "dense": dense.model_hash,
            "calibration_hash": made_from.calibration_hash,
            "dtype": dense.dtype,
            "propagation": made_from.propagation,
        }
        """What the manifest of the variant's checkpoint says."""
        self.key = {
            "masks": self.masks.digest,
            "dense": dense.model_hash,
            "activations": self.activations.reader.digest,
            "solved": "" if self._solved is None else self._solved.digest,
        }
        """What determines the weights, beside the code."""

    def prune(self, layer: PrunableLayer, weight: Tensor) -> Tensor:
        """Return the pruned weight, on the CPU, of a layer's dense weight (out, in), in the same dtype."""
        composition = self._composition
        if self._solved is not None:
            return self._solved.read(layer, weight)
        mask = read_mask(self.masks, layer).to(self._device)
        weight = to_device(weight, self._device)
        with torch.no_grad():
            if composition.update is None and composition.correction is None:
                return to_host(composition.apply(weight, mask, None))()
            has = "grad_sq" in self.masks.files[layer.name]["columns"]
            grad_sq = self.masks.read_matrix(layer.name, "grad_sq", torch.float32, layer.shape) if has else None
            stats = replace(self.activations.stats(layer.name), grad_sq=grad_sq)
            stats = stats.to(self._device)
            return to_host(composition.apply(composition.correct(weight, stats), mask, stats))()


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
