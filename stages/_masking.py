"""What the mask stage makes one variant's masks from, and how it keeps them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages._ordered import OrderedModel
from stages._project import Project
from zpruner.artifacts.store import ArtifactReader, ArtifactWriter
from zpruner.checkpoint import SolvedWriter
from zpruner.model import PrunableLayer, resolve_device, shifted
from zpruner.patterns import Pattern, Permutation
from zpruner.pruning.composition import Composition, Pruned
from zpruner.runtime.transfer import to_device
from zpruner.types import LayerStats, Mask, Stat


@dataclass(frozen=True)
class MaskJob:
    """One variant: its composition and pattern, the artifacts that are read, and those that are written.

    Weights, statistics, scores and gradients are read in the order of the variant.
    """

    project: Project
    composition: Composition
    pattern: Pattern
    model: OrderedModel
    scores: ArtifactReader
    masks: ArtifactWriter
    solved: SolvedWriter
    orders: ArtifactWriter

    @property
    def ahead(self) -> bool:
        """Whether weights are stored beside the masks: those on a grid, of a solver's sweep, and biases: found once."""
        return self.composition.ahead(self.model.activations.layers, self.pattern)

    def has(self, layer: PrunableLayer) -> bool:
        """Return whether a layer is stored already, by a process that was killed."""
        return self.solved.has(layer.name) or (not self.ahead and self.masks.work.done(layer.name) is not None)

    def read_dense(self, layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        """Return a layer's weight and the statistics of the unpruned model, on the CPU.

        With gradients, where they are computed with.
        """
        return self.model.weight(layer), replace(self.model.stats(layer), grad_sq=self.gradient(layer))

    def read(self, layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        """Return the same where it is computed with."""
        weight, stats = self.read_dense(layer)
        device = resolve_device(self.project.params.machine.device)
        return to_device(weight, device), stats.to(device)

    def score(self, layer: PrunableLayer) -> Tensor:
        """Return a layer's scores, float32 (out, in); under pruned propagation none are stored: they are taken anew."""
        if self.project.params.calibration.propagation == "pruned":
            return self.composition.score(*self.read(layer)).values
        values = self._read(layer, "score")
        return to_device(values, resolve_device(self.project.params.machine.device))

    def unpruned(self, layer: PrunableLayer) -> dict[Stat, Tensor]:
        """Return those statistics of a layer in the unpruned model that a half-pruned one does not have."""
        found = {Stat.EFFECT: self.model.effect(layer), Stat.GRAD_SQ: self.gradient(layer)}
        return {stat: value for stat, value in found.items() if value is not None}

    def gradient(self, layer: PrunableLayer) -> Tensor | None:
        """Return a layer's `grad_sq`, which the score stage passes on where scoring was left to this stage."""
        if "grad_sq" not in next((facts["columns"] for facts in self.scores.files.values()), ()):
            return None
        return self._read(layer, "grad_sq")

    def keep(self, layer: PrunableLayer, found: Pruned) -> None:
        """Store a layer's mask, then its weight and a bias that changed, which say that the layer is done."""
        self._write(found.mask)
        self.masks.drain()
        bias = None if found.shift is None else shifted(self.model.bias(layer), found.shift)
        self.solved.write(layer.name, found.weight, found.quantized, bias)

    def keep_mask(self, layer: PrunableLayer, mask: Mask) -> None:
        """Store a layer's mask, with the gradients that its weight update reads: `apply` reads no scores."""
        update = self.composition.update
        reads = update is not None and Stat.GRAD_SQ in update.required()
        self._write(mask, self._read(layer, "grad_sq") if reads else None)

    def _read(self, layer: PrunableLayer, column: str) -> Tensor:
        values = self.scores.read_matrix(layer.name, column, torch.float32, layer.shape)
        return self.model.order.weight(layer, values)

    def _write(self, mask: Mask, gradient: Tensor | None = None) -> None:
        if mask.order is not None:
            self.orders.write(mask.layer, {"order": mask.order}, kind=Permutation.CHANNELS.value)
            self.orders.drain()  # before the mask, which says that the layer is done
        columns = {"keep": mask.keep} if gradient is None else {"keep": mask.keep, "grad_sq": gradient}
        self.masks.write(mask.layer, columns, kept=int(mask.keep.sum()), weights=mask.keep.numel(), **mask.chosen)
