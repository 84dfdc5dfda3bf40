"""A variant's weights: from the dense ones, its mask, and the statistics that its weight update reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from stages._ordered import ORDERS, open_ordered
from stages._project import Project
from stages._structures import open_plan
from zpruner.artifacts.store import ArtifactReader
from zpruner.artifacts.work import Work
from zpruner.calibration import Activations
from zpruner.checkpoint import Change, Checkpoint, SolvedWeights
from zpruner.checkpoint.masks import read_mask, require_pattern
from zpruner.errors import MEND, ArtifactError
from zpruner.model import PrunableLayer, resolve_device
from zpruner.patterns import StructuredPattern
from zpruner.pruning.compose import compose
from zpruner.pruning.structure_plan import StructurePlan
from zpruner.runtime.transfer import to_device, to_host
from zpruner.structures import write_cut


class VariantWeights:
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
        pattern = project.params.pattern(sparsity)
        self._composition = compose(project.params.method(method))
        self.method, self.sparsity = method, sparsity
        self._project, self._dense, self._pattern = project, dense, pattern
        self._device = resolve_device(project.params.machine.device)
        expected = replace(project.variant(method, sparsity), model_hash=dense.model_hash)
        self.masks = ArtifactReader(project.masks(method, sparsity), "masks", expected)
        made_from = self.masks.provenance
        self.activations = project.open_activations(dense, made_from.calibration_hash)
        ahead = made_from.propagation == "pruned" or self._composition.ahead(self.activations.layers, pattern)
        own = replace(made_from, dtype=dense.dtype)  # the weights must be this very variant's
        self.model = open_ordered(project, method, sparsity, dense, self.activations, self.masks)
        """The unpruned model in the order of the variant."""
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
            **({ORDERS: self.model.digest} if self.model.digest else {}),
        }
        """What the manifest of the variant's checkpoint says."""
        self.key = {
            "masks": self.masks.digest,
            "dense": dense.model_hash,
            "activations": self.activations.reader.digest,
            "orders": self.model.digest,
            "solved": "" if self._solved is None else self._solved.digest,
        }
        """What determines the weights, beside the code."""

    @cached_property
    def plan(self) -> StructurePlan | None:
        """What structures its pattern removes; None where it removes single weights."""
        if not isinstance(self._pattern, StructuredPattern):
            return None
        return open_plan(self._project, self._dense, self._pattern, self.activations.inventory)

    def cut(self, work: Work, step: Callable[[], None], card: str) -> None:
        """Write the checkpoint without the structures that go into `work.files`, one block in memory.

        Args:
            work: the open work folder.
            step: called after each shard.
            card: text of README.md, the model card.
        """
        assert self.plan is not None
        stay = self.plan.kept_of(lambda layer: read_mask(self.masks, layer).keep)
        inventory, trust = self.activations.inventory, self._project.params.model.trust_remote_code
        write_cut(
            self._dense,
            inventory,
            self.plan.couplings,
            stay,
            self.prune,
            work,
            self.facts,
            step,
            card,
            bias=self.bias,
            trust_remote_code=trust,
        )

    @property
    def bias(self) -> Change | None:
        """What gives a layer's bias in place of the dense one; None where all biases stay."""
        return self._solved.read_bias if self._solved is not None and self._composition.correct_bias else None

    def prune(self, layer: PrunableLayer, weight: Tensor) -> Tensor:
        """Return the pruned weight, on the CPU, of a layer's dense weight (out, in), in the same dtype.

        Both are in the order of the variant, as is what `bias` is given and returns.

        Raises:
            ArtifactError: a mask that is not of its pattern, or solved weights that are not of their mask.
        """
        composition = self._composition
        mask = read_mask(self.masks, layer, self.model.gathered.get(layer.name))
        require_pattern(self.masks, mask, self._pattern)
        if self._solved is not None:
            weight = self._solved.read(layer, weight)
            if bool(weight.masked_select(~mask.keep).any()):
                got = f"weights of {layer.name} that its mask removes"
                raise ArtifactError(str(self._project.solved(self.method, self.sparsity)), got, "zeros there", MEND)
            return weight
        mask = mask.to(self._device)
        weight = to_device(weight, self._device)
        with torch.no_grad():
            if composition.update is None and composition.correction is None:
                return to_host(composition.apply(weight, mask, None))()
            has = "grad_sq" in self.masks.files[layer.name]["columns"]
            grad_sq = self.masks.read_matrix(layer.name, "grad_sq", torch.float32, layer.shape) if has else None
            stats = replace(self.model.stats(layer), grad_sq=grad_sq)
            stats = stats.to(self._device)
            return to_host(composition.apply(composition.correct(weight, stats).weight, mask, stats))()


def open_solved(
    project: Project, method: str, sparsity: str, activations: Activations, model_hash: str
) -> SolvedWeights | None:
    """Return what has integers, scales and biases of a variant; None where its weights tell all.

    Args:
        project: with the artifacts of the stages up to mask.
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        activations: of the calibration that the variant is made with.
        model_hash: of the unpruned checkpoint.

    Raises:
        ArtifactError: solved weights that are missing or belong to another variant or model.
    """
    if not compose(project.params.method(method)).ahead(activations.layers, project.params.pattern(sparsity)):
        return None
    calibration_hash = activations.provenance.calibration_hash
    own = replace(project.variant(method, sparsity), model_hash=model_hash, calibration_hash=calibration_hash)
    return SolvedWeights(project.solved(method, sparsity), own)
