"""Read and write the weights of a model in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import ModelStructureError
from zpruner.model.layers import PrunableLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def get_weight(model: PreTrainedModel, layer: PrunableLayer) -> Tensor:
    """Return a layer's weight as (out, in), sharing the model's memory.

    Raises:
        ModelStructureError: the model has no such weight.
    """
    try:
        return layer.view(model.get_parameter(layer.tensor).detach())
    except AttributeError:
        raise ModelStructureError(
            f"model {type(model).__name__}", f"no weight '{layer.tensor}'", "the model that was calibrated", "Use that."
        ) from None


def set_weight(model: PreTrainedModel, layer: PrunableLayer, weight: Tensor) -> None:
    """Overwrite a layer's weight with `weight` (out, in), cast to the model's dtype."""
    with torch.no_grad():
        get_weight(model, layer).copy_(weight)
