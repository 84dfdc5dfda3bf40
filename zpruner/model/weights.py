"""Read and write the weights of a model in memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import ModelStructureError
from zpruner.model.layers import PrunableLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check_in_memory(model: PreTrainedModel) -> None:
    """Raise ModelStructureError if weights lie elsewhere than in memory: on disk, or on the meta device.

    Offloading keeps a weight on the meta device until its module runs: it cannot be read, and what is written to it is
    lost.
    """
    absent = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if absent:
        raise ModelStructureError(
            f"model {type(model).__name__}",
            f"{len(absent)} weights that are not in memory (offloaded, or on the meta device), such as '{absent[0]}'",
            "a model with all weights in memory",
            "Load it without device_map and offloading; one that does not fit is read block by block by the pipeline "
            "(machine.streaming in params.yaml).",
        )


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
    stored = get_weight(model, layer)
    with torch.inference_mode(stored.is_inference()), torch.no_grad():  # a model made in that mode changes only in it
        stored.copy_(weight)
