"""The unpruned model in the order in which a variant is pruned: found by the mask stage, kept as an artifact."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stages._project import Project
from zpruner.artifacts.store import ArtifactReader, ArtifactWriter
from zpruner.calibration import Activations
from zpruner.checkpoint import Checkpoint
from zpruner.errors import MEND, ArtifactError, ShapeMismatchError
from zpruner.model import PrunableLayer, resolve_device
from zpruner.model.empty import empty_model
from zpruner.patterns import Pattern, Permutation, SparsityPattern
from zpruner.pruning.compose import compose
from zpruner.pruning.permuting import find_order, movable
from zpruner.runtime.progress import progress
from zpruner.runtime.transfer import to_device
from zpruner.structures import Reordering, Symmetry, check_order
from zpruner.types import LayerStats

ORDERS = "orders"
"""The kind of the artifact, and the entry in an index of masks that has its digest."""


@dataclass(frozen=True)
class OrderedModel:
    """Weights, biases and statistics of the unpruned model, in another order where a variant has one.

    Attributes:
        dense: the unpruned checkpoint, in its own order.
        activations: its statistics, in its own order.
        order: what moves.
        digest: of the artifact that has orders; empty where there are none.
        gathered: layer -> int64 (in,), the order of its inputs in which its mask is N:M, where that is not its own.
    """

    dense: Checkpoint
    activations: Activations
    order: Reordering
    digest: str = ""
    gathered: Mapping[str, Tensor] = field(default_factory=dict)

    def weight(self, layer: PrunableLayer) -> Tensor:
        """Return a layer's weight (out, in), in the checkpoint's dtype, on the CPU."""
        return self.order.weight(layer, self.dense.read_weight(layer))

    def bias(self, layer: PrunableLayer) -> Tensor | None:
        """Return a layer's bias (out,), in the checkpoint's dtype; None where it has none."""
        found = self.dense.read_bias(layer)
        return None if found is None else self.order.outputs(layer, found)

    def effect(self, layer: PrunableLayer) -> Tensor | None:
        """Return how much each output of a layer counts, float32 (out,); None where that was not collected."""
        found = self.activations.effect(layer.name)
        return None if found is None else self.order.outputs(layer, found)

    def stats(self, layer: PrunableLayer) -> LayerStats:
        """Return the statistics of a layer's input, on the CPU."""
        return self.order.stats(layer, self.activations.stats(layer.name))


def find_ordered(
    project: Project, method: str, sparsity: str, dense: Checkpoint, activations: Activations, orders: ArtifactWriter
) -> OrderedModel:
    """Write an order for everything of the model that moves, and return the model in that order.

    Nothing moves where the composition does not say so, or the pattern is not N:M.

    Args:
        project: with the artifacts of the stages up to score.
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        dense: the unpruned checkpoint.
        activations: of it.
        orders: takes the orders; those that it has are not found again.

    Raises:
        InvalidPatternError: the model has nothing of a kind that could move.
    """
    device = resolve_device(project.params.machine.device)
    pattern, symmetries = project.params.pattern(sparsity), _movable(project, method, sparsity, dense, activations)
    if not symmetries or not isinstance(pattern, SparsityPattern):
        return OrderedModel(dense, activations, Reordering())

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        return to_device(dense.read_weight(layer), device), activations.stats(layer.name).to(device)

    todo = [symmetry for symmetry in symmetries if orders.work.done(symmetry.name) is None]
    done = len(symmetries) - len(todo)
    for symmetry in progress(todo, f"order {method} {sparsity}", len(symmetries), "layer", done):
        order = find_order(symmetry, read, pattern, activations.inventory)
        same = torch.arange(symmetry.count)
        orders.write(symmetry.name, {"order": same if order is None else order}, kind=symmetry.kind.value)
    orders.finish(project.orders(method, sparsity))
    found = ArtifactReader(project.orders(method, sparsity), ORDERS)
    return OrderedModel(dense, activations, _reordering(symmetries, found))


def open_ordered(
    project: Project, method: str, sparsity: str, dense: Checkpoint, activations: Activations, masks: ArtifactReader
) -> OrderedModel:
    """Return the unpruned model in the order that the masks of a variant were found in.

    Args:
        project: with the artifacts of the stages up to mask.
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        dense: the unpruned checkpoint.
        activations: of it.
        masks: of the variant.

    Raises:
        ArtifactError: orders that are missing, damaged, not those of these masks, or not of what moves in this model.
    """
    orders = ArtifactReader(project.orders(method, sparsity), ORDERS, project.variant(method, sparsity))
    if (expected := masks.index.get(ORDERS)) != orders.digest:
        got = f"orders with digest {orders.digest}"
        raise ArtifactError(str(orders.folder), got, f"{expected}, as {masks.folder} says", MEND)
    symmetries = _movable(project, method, sparsity, dense, activations)
    gathered = compose(project.params.method(method)).gathers(project.params.pattern(sparsity))
    layers = activations.layers if gathered else ()
    names = {*(symmetry.name for symmetry in symmetries), *(layer.name for layer in layers)}
    if odd := sorted(orders.files.keys() ^ names):
        got = f"'{odd[0]}' among {len(orders.files)}"
        raise ArtifactError(str(orders.folder), got, f"{len(names)} orders", MEND)
    own = {la.name: _checked(orders, la.name, partial(check_order, la.name, la.in_features)) for la in layers}
    return OrderedModel(dense, activations, _reordering(symmetries, orders), orders.digest if orders.files else "", own)


def _reordering(symmetries: list[Symmetry], orders: ArtifactReader) -> Reordering:
    return Reordering(symmetries, {each.name: _checked(orders, each.name, each.checked) for each in symmetries})


def _checked(orders: ArtifactReader, name: str, check: Callable[[Tensor | None], Tensor]) -> Tensor:
    """Return the order of that name, checked."""
    try:
        return check(orders.read(name).get("order"))
    except ShapeMismatchError as error:
        raise ArtifactError(str(orders.folder / orders.files[name]["file"]), error.got, error.expected, MEND) from None


def _movable(
    project: Project, method: str, sparsity: str, dense: Checkpoint, activations: Activations
) -> list[Symmetry]:
    """Return what moves in a variant."""
    pattern: Pattern = project.params.pattern(sparsity)
    kinds: Collection[Permutation] = compose(project.params.method(method)).moved(pattern)
    if not kinds or not isinstance(pattern, SparsityPattern):
        return []
    model = empty_model(dense.folder, trust_remote_code=project.params.model.trust_remote_code)
    return movable(model, activations.inventory, kinds, pattern)
