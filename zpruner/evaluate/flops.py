"""Floating-point operations per token, counted by running a block of each kind."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zpruner.model import take_inventory
from zpruner.structures.probe import Probe
from zpruner.structures.sizes import empty_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_TOKENS = 4


def flops_per_token(config: PretrainedConfig, blocks: str | None = None) -> int:
    """Return the floating-point operations of a token's products with weights: two per weight that it meets.

    Of experts those count that the model's code multiplies by, which is seen in a run on a few tokens with zeros for
    weights. Zeros in a checkpoint are multiplied like any other number. What attention computes beside its weights
    grows with the context, and is not counted.

    Args:
        config: of the model.
        blocks: path of the decoder blocks where it cannot be found by structure.

    Raises:
        ModelStructureError: as `take_inventory`.
    """
    empty = empty_of(config)
    inventory = take_inventory(empty, blocks)
    parts = {layer.tensor: layer.parts for layer in inventory.layers}
    probe = Probe.of(empty, inventory.blocks)
    weights, owners, last = probe.hollow_weights(), probe.owners(), probe.last()
    found: Counter[int] = Counter()

    def observe(name: str, _: int, inputs: Tensor) -> None:
        block = probe.block_of(name)
        assert block is not None
        rows = inputs.numel() // inputs.shape[-1]
        found[block] += 2 * rows * (weights[name].numel() // parts.get(name, 1))

    with torch.no_grad():
        probe.run(weights, last, observe, tokens=_TOKENS)
    outside = sum(
        2 * module.weight.numel()
        for name, module in empty.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not name.startswith(f"{inventory.blocks}.")
    )
    return outside + sum(found[owner] for owner in owners) // _TOKENS
