"""How far each decoder block turns the hidden state, with some of the blocks left out."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.calibration.calls import hidden_of, left_out
from zpruner.errors import ModelStructureError
from zpruner.execution import Runner
from zpruner.model import Inventory

DISTANCE_WINDOWS = 16
"""Calibration windows that distances are taken over, the first: 8,192 tokens of the default model rank its blocks as
16,384 do, and they are measured again after each block that goes."""


class BlockDistances:
    """Measures the mean over calibration tokens of `1 - cos(input, output)` of every block.

    Args:
        runner: of the unpruned model.
        inventory: of the model.
        windows: int (windows, seqlen) token ids, of which the first few are read.
        batch_size: windows per call.
    """

    def __init__(self, runner: Runner, inventory: Inventory, windows: Tensor, batch_size: int) -> None:
        self._runner, self._path = runner, inventory.blocks
        self._blocks = [runner.model.get_submodule(f"{inventory.blocks}.{i}") for i in range(inventory.n_blocks)]
        self._batches = windows[:DISTANCE_WINDOWS].split(batch_size)
        self._beside: dict[int, int | None] = {}
        """Index of a block -> how many empty places it returns beside the hidden state; None: that alone."""

    def __call__(self, keep: Tensor) -> Tensor:
        """Return the distances, float64 (blocks,), given which blocks stay, bool (blocks,); infinite where one goes.

        Raises:
            ModelStructureError: a block that is to be left out hands on more than a hidden state.
        """
        total, tokens = torch.zeros(len(self._blocks), dtype=torch.float64), [0] * len(self._blocks)

        def after(index: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            before = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)).float()
            cosine = torch.cosine_similarity(before, hidden_of(result).float(), dim=-1)
            total[index] += (1.0 - cosine).sum(dtype=torch.float64).cpu()
            tokens[index] += cosine.numel()
            if not isinstance(result, Tensor) and any(value is not None for value in result[1:]):
                self._beside.pop(index, None)
            else:
                self._beside[index] = None if isinstance(result, Tensor) else len(result) - 1

        gone = [index for index in range(len(self._blocks)) if not keep[index]]
        for index in gone:
            if index not in self._beside:
                raise ModelStructureError(
                    f"{self._path}.{index}",
                    "a block that hands on more than a hidden state",
                    "one that can be left out",
                    "Leave blocks out of the pattern.",
                )
        there = [index for index in range(len(self._blocks)) if keep[index]]
        handles = [
            self._blocks[index].register_forward_hook(partial(after, index), with_kwargs=True) for index in there
        ]
        try:
            with left_out(self._blocks, {index: self._beside[index] for index in gone}) if gone else nullcontext():
                for _ in self._runner.run([partial(self._decode, batch) for batch in self._batches]):
                    pass
        finally:
            for handle in handles:
                handle.remove()
        found = total / torch.tensor(tokens).clamp_min(1)
        return found.masked_fill(~keep, torch.inf)

    def _decode(self, batch: Tensor) -> None:
        self._runner.model.base_model(input_ids=batch.to(self._runner.device, torch.long), use_cache=False)
