"""Neurons, head dimensions and the stream in an order in which N:M keeps more: the same function, as it lies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.calibration import Calibration
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.masks import arrange_columns, kept_sum
from zpruner.model import Inventory, PrunableLayer, check_in_memory, get_weight, ignoring, undisturbed
from zpruner.patterns import Permutation
from zpruner.runtime.progress import progress
from zpruner.structures import MOVABLE, Reordering, Slices, Symmetry, find_symmetries
from zpruner.types import LayerStats, SparsityPattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST = 1 << 26
"""Numbers from which an order is found: 256 MiB in float32."""
Read = Callable[[PrunableLayer], tuple[Tensor, LayerStats]]
"""Given a layer, returns its unpruned weight, float (out, in), and the statistics of its input."""


@undisturbed
def permute_neurons(
    model: PreTrainedModel, calibration: Calibration, *, sparsity: str = "2:4", rounds: int = 2
) -> dict[str, Tensor]:
    """Put the neurons of a model's MLPs into an order in which N:M keeps more, before it is pruned.

    What makes a neuron (rows of weights, biases) and what reads it (columns) move together, so that the model computes
    what it did, up to rounding. N:M compares neighbouring columns: in another order the loud ones compete less. The
    order is RIA's (ICLR 2024: dealt out, then assigned), for `W^2 a`, the squared error of a weight that goes; RIA
    itself gathers activations at run time, which moving the rows makes needless. The weights in `model` and the
    statistics in `calibration` are overwritten; pruned propagation measures the permuted model by itself.

    Args:
        model: the model that was calibrated, not pruned since.
        calibration: from `zpruner.calibrate`, with sq_sum, as by default.
        sparsity: N:M.
        rounds: of assigning; 0: neurons are only dealt out.

    Returns:
        Name of the layer that reads the neurons -> int64 (neurons,): the old place of each. Those that stay where they
        are, since no order was found in which more is kept, are left out.

    Raises:
        InvalidPatternError: no N:M; a width that M does not divide; a model whose neurons are not found.
        InvalidSettingError: a calibration of which layers were pruned already.
        ModelStructureError: weights that are not in memory.
    """
    return permute(model, calibration, {Permutation.NEURONS}, sparsity, rounds)


@undisturbed
def permute_heads(
    model: PreTrainedModel, calibration: Calibration, *, sparsity: str = "2:4", rounds: int = 2
) -> dict[str, Tensor]:
    """Put the value dimensions of a model's attention heads into an order in which N:M keeps more.

    Rows of v (and its bias) move with the columns of o, within each head, and alike in heads that share their values.
    As `permute_neurons` otherwise: arguments, errors and result, of which the keys are the layers that read the heads.
    """
    return permute(model, calibration, {Permutation.HEADS}, sparsity, rounds)


@undisturbed
def permute_stream(
    model: PreTrainedModel, calibration: Calibration, *, sparsity: str = "2:4", rounds: int = 2
) -> dict[str, Tensor]:
    """Put the channels of the residual stream into an order in which N:M keeps more: one for the whole model.

    Columns of embeddings, head and of every layer that reads the stream move, rows and biases of every layer that adds
    to it, norms. As `permute_neurons` otherwise: arguments, errors and result, of which the key is `stream`.
    """
    return permute(model, calibration, {Permutation.STREAM}, sparsity, rounds)


def permute(
    model: PreTrainedModel,
    calibration: Calibration,
    kinds: Collection[Permutation],
    sparsity: str,
    rounds: int = 2,
    ignore: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Put several kinds into another order at once; see `permute_neurons`.

    What layers read whose names match `ignore` stays as it is.
    """
    check_in_memory(model)
    pattern = SparsityPattern.parse(sparsity)
    if not pattern.is_nm:
        raise InvalidPatternError(
            "sparsity", f"'{sparsity}'", "N:M: other patterns do not depend on the order", "Leave the order as it is."
        )
    if calibration.replaced:
        raise InvalidSettingError(
            "calibration", "one whose model was pruned since", "an unpruned model", "Permute before pruning."
        )
    inventory = ignoring(calibration.inventory, ignore)
    symmetries = movable(model, inventory, kinds, pattern)

    def read(layer: PrunableLayer) -> tuple[Tensor, LayerStats]:
        return get_weight(model, layer), calibration.stats(layer.name)

    shown = progress(symmetries, "order", len(symmetries), "layer")
    found = {symmetry.name: find_order(symmetry, read, pattern, inventory, rounds) for symmetry in shown}
    orders = {name: order for name, order in found.items() if order is not None}
    _reorder(model, calibration, Reordering(symmetries, orders))
    return orders


def put_back(model: PreTrainedModel, calibration: Calibration, orders: Mapping[str, Tensor]) -> None:
    """Undo `permute`, given what it returned, of a model that has all of its channels."""
    if orders:
        kinds = MOVABLE if Permutation.STREAM in orders else MOVABLE - {Permutation.STREAM}
        symmetries = find_symmetries(model, kinds, calibration.inventory.blocks).found
        old = {name: order.argsort() for name, order in orders.items()}
        _reorder(model, calibration, Reordering(symmetries, old))


def movable(
    model: PreTrainedModel, inventory: Inventory, kinds: Collection[Permutation], pattern: SparsityPattern
) -> list[Symmetry]:
    """Return what of a model can be put into an order in which N:M keeps more.

    Left out is what only layers read that stay dense, and runs of items that M does not divide.

    Args:
        model: in memory, or empty.
        inventory: of the model.
        kinds: what is looked for.
        pattern: N:M.

    Raises:
        InvalidPatternError: none of a kind; a layer whose width M does not divide.
    """
    assert pattern.group_size is not None
    symmetries, known = find_symmetries(model, kinds, inventory.blocks), {layer.name for layer in inventory.layers}
    found = []
    for kind in sorted(kinds):
        of_kind = symmetries.of(kind)
        pruned = [s for s in of_kind if any(read.layer and read.layer.name in known for read in s.reads)]
        for layer in (read.layer for symmetry in pruned for read in symmetry.reads):
            assert layer is not None
            pattern.check_width(layer.in_features, layer.name)
        fitting = [s for s in pruned if s.length % pattern.group_size == 0]
        if pruned and not fitting:
            got = f"{pruned[0].length} that may change places in {pruned[0].name}"
            expected = f"a number that {pattern.group_size} divides"
            raise InvalidPatternError(f"permute '{kind.value}'", got, expected, f"Leave {kind.value} out.")
        found += fitting
    return found


def find_order(
    symmetry: Symmetry, read: Read, pattern: SparsityPattern, inventory: Inventory, rounds: int = 2
) -> Tensor | None:
    """Return an order in which N:M keeps more of `W^2 a`, int64 (count,), on the CPU; None where none was found.

    Of very many rows, as all layers that read the stream have together, some are looked at; that an order keeps more is
    checked on all.

    Args:
        symmetry: what may move.
        read: gives the weights and statistics of what reads it.
        pattern: N:M.
        inventory: the layers that are pruned.
        rounds: see `arrange_columns`.
    """
    known = {layer.name for layer in inventory.layers}
    reads = [slices for slices in symmetry.reads if slices.layer is not None and slices.layer.name in known]
    numbers = sum(slices.layer.out_features * slices.layer.in_features for slices in reads if slices.layer)
    step = -(-numbers // _MOST)
    sample = torch.cat([_scores(slices, read, symmetry.count)[::step].contiguous() for slices in reads])
    runs = sample.split(symmetry.length, dim=1)
    del sample
    order = torch.cat(
        [
            arrange_columns(run.contiguous(), pattern, rounds=rounds).cpu() + number * symmetry.length
            for number, run in enumerate(runs)
        ]
    )
    if torch.equal(order, torch.arange(symmetry.count)):
        return None
    if step > 1:  # what helps the rows that were looked at must help all
        gain = 0.0
        for slices in reads:
            scores = _scores(slices, read, symmetry.count)
            gain += kept_sum(scores[:, order.to(scores.device)], pattern) - kept_sum(scores, pattern)
        return order if gain > 0 else None
    return order


def _scores(slices: Slices, read: Read, count: int) -> Tensor:
    """Return `W^2 a` of what reads items, float32 (rows, count): a row for each output and place of an item."""
    assert slices.layer is not None
    weight, stats = read(slices.layer)
    scores = weight.float().square() * stats.squared_norm()
    return scores[:, slices.index.to(scores.device)].permute(2, 0, 1).reshape(-1, count)


def _reorder(model: PreTrainedModel, calibration: Calibration, reordering: Reordering) -> None:
    """Move what moves in a model's parameters and in the statistics of its layers, in place."""
    reordering.move(reordering.moves, model.get_parameter)
    collection = calibration.collection
    for layer in calibration.inventory.layers:
        stats = calibration.stats(layer.name)
        moved = reordering.stats(layer, stats)
        if moved is stats:
            continue
        for mine, apart in ((moved.grad_sq, calibration.grad_sq), (moved.effect, collection.effect)):
            if mine is not None:
                apart[layer.name].copy_(mine)
        if collection.owner[layer.name] == layer.name:
            for name, value in collection.accumulators[layer.name].state().items():
                value.copy_(getattr(moved, name))
