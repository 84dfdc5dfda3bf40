"""Sequential propagation: run the decoder block by block, with what each block was called with recorded once.

One dense forward pass records every block's own call arguments; after that a block is replayed on its own with only
the hidden state replaced, and whatever else an earlier block returned, so that it can be measured, pruned and run again
without a forward pass of the model. A replay of the unpruned blocks must equal the dense forward pass, and no other
argument may change with what the blocks before put out, else replaying is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zpruner.calibration.blocks import DecoderBlocks
from zpruner.calibration.calls import Output, hidden_of, others_of
from zpruner.calibration.capture import Kept, capturing, keeping, noting, until
from zpruner.calibration.collection import Collection
from zpruner.calibration.dense import check_finite
from zpruner.calibration.experts import MIN_EXPERT_TOKENS, fill_experts
from zpruner.calibration.order import SubModule, submodules
from zpruner.calibration.reached import check_reached
from zpruner.calibration.recall import RECALLED, Recall
from zpruner.calibration.recording import record
from zpruner.execution import Runner, WholeRunner
from zpruner.model import Inventory, Parameters, PrunableLayer, get_parameters, set_parameters
from zpruner.types import RELATIVE, Stat

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockReplay:
    """Runs calibration windows through a model's decoder blocks, one block at a time.

    Args:
        model: any causal language model; blocks before the current one may be pruned as the replay advances.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        batch_size: windows per call.
        follow_dense: also carry along the hidden states of the unpruned model, for statistics that need both.
        runner: of `model`, where its weights are read block by block.

    Raises:
        ModelStructureError: a block is not a function of the previous block's output, or its replay differs.
        NonFiniteError: NaN or infinity in what a block puts out; names the layer where a weight is the reason.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        inventory: Inventory,
        windows: Tensor,
        batch_size: int,
        follow_dense: bool = False,
        runner: Runner | None = None,
    ) -> None:
        self.model, self.inventory, self.windows = model, inventory, windows
        self.runner = runner or WholeRunner(model)
        self._decoder = DecoderBlocks(model, inventory)
        self.blocks = self._decoder.modules
        recording = record(self._decoder, self.runner, windows.split(batch_size), follow_dense)
        self.hidden = recording.hidden
        """The current block's input, batch by batch: (batch_size, seqlen, width)."""
        self._calls = recording.calls
        self._returned: list[dict[Output, Tensor]] = [{} for _ in self.hidden]
        """What later blocks are given of what the blocks up to now returned, batch by batch."""
        self.dense: list[Tensor] | None = list(self.hidden) if follow_dense else None
        """The same of the unpruned model."""
        room = 0 if self.runner.streamed else RECALLED
        self._recall, self._recall_dense = Recall(room), Recall(room)

    def holding(self, block: int) -> AbstractContextManager[None]:
        """Return a context manager during which the weights of `block` stay in memory, changes included."""
        return self.runner.holding(block)

    def measure(
        self,
        block: int,
        stats: Set[Stat],
        min_expert_tokens: int = MIN_EXPERT_TOKENS,
        part: SubModule | None = None,
        unpruned: Mapping[PrunableLayer, Parameters] | None = None,
        last: bool = True,
    ) -> Collection:
        """Return the statistics `stats` of what the layers of `block` read, given the current hidden states.

        Relative statistics need `follow_dense`, with which the dense hidden states move on by one block.

        Args:
            block: its index; the weights of the layers that are measured must still be dense.
            stats: what to collect.
            min_expert_tokens: see `zpruner.calibration.fill_experts`.
            part: of the block, to be measured alone; the pass ends once its layers are reached, which alone may change
                before the next is measured (else `forget_results`).
            unpruned: layers of the block that are pruned by now, and what they have in the unpruned model.
            last: whether this is the last that is measured of the block; only then dense hidden states move on.
        """
        collection = Collection(windows=self.windows.shape[0])
        layers = [layer for layer in self.inventory.layers if layer.block == block]
        layers = layers if part is None else list(part.layers)
        reads = None if part is None else part.reads
        added = None if Stat.DRIFT not in stats else {} if part is None else part.added
        relative = layers if stats & RELATIVE else []  # whose inputs in the unpruned model are needed
        with torch.no_grad(), self.holding(block):
            for index in range(len(self._calls[block])):
                dense = None
                if self.dense is not None and (relative or last):
                    with self._with(unpruned or {}):
                        read = self._run_dense(block, index, relative, None if last else reads, added, move=last)
                    dense = read if relative else None
                known = self._recall.passing(index, part is not None)
                with (
                    known,
                    until(self.model, self.inventory, layers, reads, added),
                    capturing(self.model, self.inventory, collection, stats, layers, dense, known.close),
                ):
                    self.repeat(block, index)
        check_finite(collection)
        measured = Inventory(self.inventory.blocks, 1, tuple(layers), ())
        fill_experts(measured, collection, min_expert_tokens)
        check_reached(measured, collection.owner, block)
        return collection

    def parts(self, block: int) -> list[SubModule]:
        """Return the sub-modules of `block` in the order in which they are reached, from one batch run through it."""
        layers = [layer for layer in self.inventory.layers if layer.block == block]
        if not self._calls[block]:
            return []
        with torch.no_grad(), self.holding(block), noting(self.model, self.inventory, layers) as seen:
            self.repeat(block, 0)
        return submodules(layers, *seen)

    def advance_dense(self, block: int) -> None:
        """Move the dense hidden states on by one block, whose weights must still be dense; for a resumed run."""
        if self.dense is not None and self._calls[block]:
            with torch.no_grad(), self.holding(block):
                for index in range(len(self.dense)):
                    self._run_dense(block, index, [], None, None, move=True)

    def leave_out(self, block: int) -> None:
        """Pass over a block that goes: the current hidden states stay as they are, the dense ones move on."""
        self.advance_dense(block)
        later = {place for calls in self._calls[block + 1 :] for call in calls for place in call.passed.values()}
        if any(of == block for of, _ in later):
            raise self._decoder.refused(
                block, "later blocks that read what this one returns", "a block without which they run"
            )
        self._calls[block] = []

    def _run_dense(
        self,
        block: int,
        index: int,
        layers: list[PrunableLayer],
        reads: Mapping[str, int] | None,
        added: Mapping[str, int] | None,
        move: bool,
    ) -> Kept:
        """Run one batch of the dense hidden states through a dense block; return what `layers` read.

        With `added` also what they are added to.
        """
        assert self.dense is not None
        with (
            self._recall_dense.passing(index, not move),
            until(self.model, self.inventory, layers, reads, added),
            keeping(self.model, self.inventory, layers, added is not None) as kept,
        ):
            result = self._calls[block][index].repeat(self.blocks[block], self.dense[index])
            if move:
                self.dense[index] = hidden_of(result)
                self._recall_dense.forget(index)
        return kept

    @contextmanager
    def _with(self, others: Mapping[PrunableLayer, Parameters]) -> Iterator[None]:
        """Put other weights and biases in place, and those that were there back at the end."""
        now = {layer: get_parameters(self.model, layer).copied() for layer in others}
        try:
            for layer, found in others.items():
                set_parameters(self.model, layer, found)
            yield
        finally:
            for layer, found in now.items():
                set_parameters(self.model, layer, found)

    def advance(self, block: int) -> None:
        """Run the current hidden states through `block`, as its weights are now."""
        with torch.no_grad(), self.holding(block):
            for index, call in enumerate(self._calls[block]):
                self._bring_back(index)
                with self._recall.passing(index, False):
                    result = call.repeat(self.blocks[block], self.hidden[index], self._returned[index])
                self._recall.forget(index)
                self.hidden[index] = hidden_of(result)
                later = [calls[index] for calls in self._calls[block + 1 :] if calls]
                wanted = {place for call in later for place in call.passed.values()}
                known = {**self._returned[index], **dict(others_of(block, result))}
                self._returned[index] = {place: value for place, value in known.items() if place in wanted}
                self._keep_small(index)
        self._calls[block] = []  # what a block was called with is not needed again

    def forget_results(self) -> None:
        """Let go of what was noted of the current block: weights change that its sub-modules were measured with."""
        self._recall.forget_all()

    def repeat(self, block: int, index: int, run: Callable[..., Any] | None = None) -> Any:
        """Return what `block`, or `run` in its place, returns for a batch's current hidden state."""
        with self.present(index) as hidden:
            return self._calls[block][index].repeat(run or self.blocks[block], hidden, self._returned[index])

    @contextmanager
    def present(self, index: int) -> Iterator[Tensor]:
        """Yield a batch's current hidden state, which else may lie on disk."""
        self._bring_back(index)
        try:
            yield self.hidden[index]
        finally:
            self._keep_small(index)

    def _bring_back(self, index: int) -> None:
        if self.dense is None:  # which share memory with the others at first
            self.runner.bring_back(index, self.hidden[index])

    def _keep_small(self, index: int) -> None:
        if self.dense is None:
            self.runner.keep_small(index, self.hidden[index])
