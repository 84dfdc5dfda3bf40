"""Neurons in another order, in which N:M keeps more: the same function, an ordinary checkpoint, no gather."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.calibration import Calibration
from zpruner.errors import InvalidPatternError, InvalidSettingError
from zpruner.masks import arrange_columns
from zpruner.model import check_in_memory, get_weight, undisturbed
from zpruner.patterns import StructureKind
from zpruner.structures import Coupling, Slices, find_couplings
from zpruner.types import SparsityPattern

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    inventory = calibration.inventory
    known = {layer.name: layer for layer in inventory.layers}
    orders: dict[str, Tensor] = {}
    couplings = find_couplings(model, inventory.blocks)
    if (reason := couplings.why_not(StructureKind.NEURONS)) is not None:
        raise InvalidPatternError("neurons", reason, "a model whose neurons are found", "Leave the order as it is.")
    for coupling in couplings.of(StructureKind.NEURONS):
        readers = [known[read.layer.name] for read in coupling.reads if read.layer and read.layer.name in known]
        if len(readers) < len(coupling.reads) or any(layer.in_features != coupling.count for layer in readers):
            continue  # of a layer that stays dense, or that reads other channels, too
        for layer in readers:
            pattern.check_width(layer.in_features, layer.name)
        scores = torch.cat(
            [get_weight(model, one).float().square() * calibration.stats(one.name).squared_norm() for one in readers]
        )
        order = arrange_columns(scores, pattern, rounds=rounds)
        if not torch.equal(order, torch.arange(coupling.count, device=order.device)):
            orders[coupling.name] = order
            _reorder(model, calibration, coupling, order)
    return orders


def _reorder(model: PreTrainedModel, calibration: Calibration, coupling: Coupling, order: Tensor) -> None:
    """Move a coupling's neurons, in the model and in the statistics of what reads them."""
    moved: set[str] = set()
    for slices in (*coupling.writes, *coupling.reads):
        parameter = model.get_parameter(slices.tensor)
        with torch.inference_mode(parameter.is_inference()), torch.no_grad():
            _move(slices.view(parameter.detach()), slices, slices.axis, order)
        if slices.layer is not None and (gradients := calibration.grad_sq.get(slices.layer.name)) is not None:
            _move(gradients, slices, slices.axis, order)
        effect = None if slices.layer is None else calibration.collection.effect.get(slices.layer.name)
        if effect is not None and slices.axis == 0:
            _move(effect, slices, 0, order)
    for slices in coupling.reads:
        assert slices.layer is not None
        owner = calibration.collection.owner[slices.layer.name]
        if owner not in moved:
            moved.add(owner)
            for value in calibration.collection.accumulators[owner].state().values():
                for axis in range(value.ndim):
                    _move(value, slices, axis, order)


def _move(tensor: Tensor, slices: Slices, axis: int, order: Tensor) -> None:
    """Put each structure along an axis of a tensor where the order says, in place."""
    index = slices.index.to(tensor.device)
    before, after = index[order.to(tensor.device)].reshape(-1), index.reshape(-1)
    tensor.index_copy_(axis, after, tensor.index_select(axis, before))
