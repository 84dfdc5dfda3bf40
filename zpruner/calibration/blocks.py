"""A model's decoder blocks, and the errors of those that cannot be run on their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from zpruner.errors import ModelStructureError, NonFiniteError
from zpruner.model import Inventory, get_weight
from zpruner.types import all_finite

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DecoderBlocks:
    """The decoder blocks of a model in their order, `modules`.

    Args:
        model: any causal language model.
        inventory: of the model.
    """

    def __init__(self, model: PreTrainedModel, inventory: Inventory) -> None:
        self.model, self.inventory = model, inventory
        self.modules = [model.get_submodule(f"{inventory.blocks}.{i}") for i in range(inventory.n_blocks)]

    def check_finite(self, block: int, hidden: Tensor) -> None:
        """Raise NonFiniteError naming the layer, or else the block, whose output `hidden` has NaN or infinity."""
        if all_finite(hidden):
            return
        bad = (
            layer.name
            for layer in self.inventory.layers
            if layer.block == block and not all_finite(get_weight(self.model, layer))
        )
        layer = next(bad, None)
        raise NonFiniteError(
            f"output of {self.inventory.blocks}.{block}" if layer is None else f"weight of layer {layer}",
            "NaN or infinity",
            "finite numbers",
            "Check the checkpoint's weights, or load it in another dtype (model.dtype in params.yaml).",
        )

    def refused(self, block: int, got: str, expected: str) -> ModelStructureError:
        """Return the error that says why a block cannot be replayed."""
        return ModelStructureError(
            f"{self.inventory.blocks}.{block}",
            got,
            expected,
            "This model cannot be pruned block after block: set calibration.propagation to dense.",
        )
