"""What a model computes beside its weights, such as rotary tables, for a model on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from zpruner.model.loader import assign, find

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_buffers(model: PreTrainedModel, stored: Iterable[str], device: torch.device) -> None:
    """Compute what no checkpoint stores as transformers does after loading: by the model's own code, on the CPU.

    Args:
        model: on the meta device.
        stored: names of its parameters and of the buffers that checkpoints store, which are left as they are.
        device: where the others are put.
    """
    stored = set(stored)
    for name in stored:
        find(model, name)._is_hf_initialized = True  # type: ignore[attr-defined]
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    buffers = [name for name, _ in model.named_buffers(remove_duplicate=False) if name not in stored]
    for name in buffers:
        assign(model, name, torch.empty_like(find(model, name), device="cpu"))
    model.initialize_weights()
    for name in buffers:
        assign(model, name, find(model, name).to(device))
