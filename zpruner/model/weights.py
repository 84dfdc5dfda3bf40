"""Read and write the weights of a model in memory."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from zpruner.errors import ModelStructureError
from zpruner.model.layers import PrunableLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Parameters(NamedTuple):
    """What a layer multiplies by, (out, in), and what it adds, (out,); None where it adds nothing."""

    weight: Tensor
    bias: Tensor | None

    def copied(self, device: torch.device | str | None = None) -> Parameters:
        """Return a copy of both, on `device` or where they lie."""
        where = self.weight.device if device is None else device
        bias = None if self.bias is None else self.bias.to(where, copy=True)
        return Parameters(self.weight.to(where, copy=True), bias)

    def shift_since(self, before: Parameters) -> Tensor | None:
        """Return what the bias gained: float32 (out,); None where it is the same."""
        if self.bias is None or before.bias is None:
            return None
        shift = self.bias.float() - before.bias.to(self.bias.device).float()
        return shift if bool(shift.any()) else None


def shifted(bias: Tensor | None, shift: Tensor | None) -> Tensor | None:
    """Return a bias plus float32 (out,), in its dtype; the bias where there is no shift."""
    return bias if bias is None or shift is None else (bias.float() + shift.to(bias.device)).to(bias.dtype)


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


def get_parameters(model: PreTrainedModel, layer: PrunableLayer) -> Parameters:
    """Return a layer's weight and bias, sharing the model's memory; errors as in `get_weight`."""
    bias = None if layer.bias is None else layer.view_bias(model.get_parameter(layer.bias).detach())
    return Parameters(get_weight(model, layer), bias)


def set_parameters(model: PreTrainedModel, layer: PrunableLayer, found: Parameters) -> None:
    """Overwrite a layer's weight (out, in), and its bias (out,) where one is given, cast to the model's dtype."""
    set_weight(model, layer, found.weight)
    stored = get_parameters(model, layer).bias
    if found.bias is not None and stored is not None:
        with torch.inference_mode(stored.is_inference()), torch.no_grad():
            stored.copy_(found.bias)
