"""The last step of a block under pruned propagation: its kept weights tuned together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zpruner.calibration import BlockFunction, BlockReplay
from zpruner.errors import ModelStructureError, one_line
from zpruner.tuning import Goal, KeptWeights, Tuning


class BlockTuning:
    """Tunes the layers of one block, given what the unpruned block puts out.

    Args:
        tuning: how.
        replay: at this block, with the unpruned model's hidden states where the tuning follows them.
        block: its index; its weights must be in memory, and none of them pruned.
    """

    def __init__(self, tuning: Tuning, replay: BlockReplay, block: int) -> None:
        self._tuning, self._replay, self._block = tuning, replay, block
        run = BlockFunction(replay, block)
        with torch.no_grad():
            replayed = (run({}, index) for index in range(len(replay.hidden)))
            self._replayed = [found.to(replay.hidden[0].dtype) for found in replayed]

    def tune(self, layers: Mapping[str, KeptWeights]) -> dict[str, Tensor]:
        """Return the new weight (out, in) of every layer; the unpruned hidden states must have passed the block.

        Raises:
            ModelStructureError: gradients do not pass the block.
        """
        self._replay.forget_results()
        goals: list[Goal] = []
        run = BlockFunction(self._replay, self._block)  # with biases as they are by now
        while self._replayed:
            index, replayed = len(goals), self._replayed.pop(0)
            dense = self._replay.dense[index] if self._replay.dense and self._tuning.follows_dense else None
            with self._replay.present(index) as given:
                goals.append(Goal(self._tuning.target(replayed, dense), given))
        try:
            return self._tuning.tune(layers, run, goals)
        except RuntimeError as error:
            if "memory" in str(error).lower():
                raise
            raise ModelStructureError(
                f"{self._replay.inventory.blocks}.{self._block}",
                f"a block that gradients do not pass ({one_line(str(error))})",
                "one that they do, for methods with `tune`",
                "Leave out methods with `tune`.",
            ) from error
