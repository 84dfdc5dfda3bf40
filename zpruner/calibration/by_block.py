"""Dense collection with the statistics of one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Set
from contextlib import ExitStack
from functools import partial
from threading import local

import torch
from torch import Tensor

from zpruner.calibration.capture import capturing
from zpruner.calibration.collection import Collection
from zpruner.calibration.dense import check_finite
from zpruner.calibration.reached import check_blocks_reached
from zpruner.errors import ModelStructureError
from zpruner.execution import Runner
from zpruner.model import TIED_BEFORE, Inventory, get_weight
from zpruner.types import LayerStats, Stat, check_weight


def collect_by_block(
    runner: Runner,
    inventory: Inventory,
    windows: Tensor,
    done: Callable[[int, Collection], None],
    *,
    stats: Set[Stat],
    batch_size: int,
    skip: Callable[[int], bool] = lambda _: False,
) -> None:
    """Collect what `collect` does, the statistics of one decoder block in memory at a time.

    The sums are the same, since the same batches pass each block in the same order.

    Args:
        runner: of the unpruned model; its weights may be read block by block.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        done: called with a block's index and statistics once all windows have passed it; they are then let go.
        stats: which sums to take.
        batch_size: windows per pass.
        skip: whether a block's statistics are known already; `done` is not called for it.

    Raises:
        NonFiniteError: as `collect`.
        ModelStructureError: blocks that share a weight, whose inputs are then those of all of them; a block that is not
            called once in every pass.
    """
    for name, reason in inventory.skipped:
        if reason == TIED_BEFORE:
            raise ModelStructureError(
                name,
                "a weight that several decoder blocks share",
                "blocks of their own, to be calibrated one by one",
                "Set machine.streaming to never in params.yaml.",
            )
    batches = windows.split(batch_size)
    passing = local()  # passes may run side by side, each in its thread

    def decode(number: int, batch: Tensor) -> None:
        passing.number = number
        runner.model.base_model(input_ids=batch.to(runner.device, torch.long), use_cache=False)

    watching = [
        _Watched(runner, inventory, block, stats, passing, len(batches), done)
        for block in range(inventory.n_blocks)
        if not skip(block)
    ]
    try:
        for _ in runner.run([partial(decode, *one) for one in enumerate(batches)]):
            pass
    finally:
        for watched in watching:
            watched.remove()
    called = {watched.block for watched in watching if watched.check_calls()}
    check_blocks_reached(inventory, {block for block in range(inventory.n_blocks) if skip(block)} | called)


class _Watched:
    """Collects the statistics of one block's layers while it is called, and hands them on once `passes` called it."""

    def __init__(
        self,
        runner: Runner,
        inventory: Inventory,
        block: int,
        stats: Set[Stat],
        passing: local,
        passes: int,
        done: Callable[[int, Collection], None],
    ) -> None:
        self.runner, self.inventory, self.block, self.stats = runner, inventory, block, stats
        self.layers = [layer for layer in inventory.layers if layer.block == block]
        self.collection = Collection()
        self._passing, self._passes, self._done = passing, passes, done
        self._seen: set[int] = set()
        self._open: ExitStack | None = None
        module = runner.model.get_submodule(f"{inventory.blocks}.{block}")
        self._handles = [module.register_forward_pre_hook(self._before), module.register_forward_hook(self._after)]

    def remove(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()

    def check_calls(self) -> bool:
        """Return whether the block was called; refuse one that only some passes called."""
        if len(self._seen) not in (0, self._passes):
            raise self._refused(f"a call in {len(self._seen)} of {self._passes} forward passes")
        return bool(self._seen)

    def _refused(self, got: str) -> ModelStructureError:
        return ModelStructureError(
            f"{self.inventory.blocks}.{self.block}",
            got,
            "one call in each",
            "Set machine.streaming to never in params.yaml.",
        )

    def _before(self, _module: object, _args: object) -> None:
        if self._passing.number in self._seen:
            raise self._refused("more than one call in a forward pass")
        self._seen.add(self._passing.number)
        self._open = ExitStack()
        self._open.enter_context(capturing(self.runner.model, self.inventory, self.collection, self.stats, self.layers))

    def _after(self, _module: object, _args: object, _result: object) -> None:
        assert self._open is not None
        self._open.close()
        if len(self._seen) == self._passes:
            for layer in self.layers:
                check_weight(get_weight(self.runner.model, layer), LayerStats(layer.name, 0, 0))
            check_finite(self.collection)
            self._done(self.block, self.collection)
            self.collection = Collection()
