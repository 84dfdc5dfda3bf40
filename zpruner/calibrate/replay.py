"""Sequential propagation: run the decoder block by block, with what each block was called with recorded once.

One dense forward pass records every block's own call arguments; after that a block is replayed on its own with only
the hidden state replaced, so that it can be measured, pruned and run again without a forward pass of the model. A
replay of the unpruned blocks must equal the dense forward pass, else replaying is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zpruner.calibrate.capture import capturing, keeping
from zpruner.calibrate.dense import Collection, check_finite
from zpruner.errors import ModelStructureError
from zpruner.model import Inventory, PrunableLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Call:
    """One call of a block, without its hidden state: the first positional argument, or the keyword `name`."""

    name: str | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def repeat(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Call the block again with another hidden state."""
        if self.name is None:
            return _hidden_of(block(hidden, *self.args, **self.kwargs))
        return _hidden_of(block(*self.args, **{**self.kwargs, self.name: hidden}))


class BlockReplay:
    """Runs calibration windows through a model's decoder blocks, one block at a time.

    Args:
        model: any causal language model; blocks before the current one may be pruned as the replay advances.
        inventory: of the model.
        windows: int (windows, seqlen) token ids.
        batch_size: windows per call.
        follow_dense: also carry along the hidden states of the unpruned model, for statistics that need both.

    Raises:
        ModelStructureError: a block is not a function of the previous block's output, or its replay differs.
    """

    def __init__(
        self, model: PreTrainedModel, inventory: Inventory, windows: Tensor, batch_size: int, follow_dense: bool = False
    ) -> None:
        self.model, self.inventory, self.windows = model, inventory, windows
        self.blocks = [model.get_submodule(f"{inventory.blocks}.{i}") for i in range(inventory.n_blocks)]
        self.hidden: list[Tensor] = []
        """The current block's input, batch by batch: (batch_size, seqlen, width)."""
        self._calls: list[list[_Call]] = []  # by block, then batch
        self._record(windows.split(batch_size))
        self.dense: list[Tensor] | None = list(self.hidden) if follow_dense else None
        """The same of the unpruned model."""

    def measure(self, block: int, gram: bool) -> Collection:
        """Return the statistics of what the layers of `block` read, given the current hidden states.

        The block's weights must still be dense. With `follow_dense`, X_dense X^T is among the statistics, and the
        dense hidden states move on by one block.
        """
        collection = Collection(windows=self.windows.shape[0])
        layers = [layer for layer in self.inventory.layers if layer.block == block]
        with torch.no_grad():
            for index, (hidden, call) in enumerate(zip(self.hidden, self._calls[block], strict=True)):
                dense = self._advance_dense(block, index, layers) if self.dense is not None else None
                with capturing(self.model, self.inventory, collection, gram, layers, dense):
                    call.repeat(self.blocks[block], hidden)
        check_finite(collection)
        return collection

    def advance_dense(self, block: int) -> None:
        """Move the dense hidden states on by one block, whose weights must still be dense; for a resumed run."""
        if self.dense is not None:
            with torch.no_grad():
                for index in range(len(self.dense)):
                    self._advance_dense(block, index, [])

    def _advance_dense(self, block: int, index: int, layers: list[PrunableLayer]) -> dict[str, Tensor]:
        """Run one batch of the dense hidden states through a dense block; return what `layers` read."""
        assert self.dense is not None
        with keeping(self.model, layers) as inputs:
            self.dense[index] = self._calls[block][index].repeat(self.blocks[block], self.dense[index])
        return inputs

    def advance(self, block: int) -> None:
        """Run the current hidden states through `block`, as its weights are now."""
        with torch.no_grad():
            for index, call in enumerate(self._calls[block]):
                self.hidden[index] = call.repeat(self.blocks[block], self.hidden[index])
        self._calls[block] = []  # what a block was called with is not needed again

    def _record(self, batches: tuple[Tensor, ...]) -> None:
        device = next(self.model.parameters()).device
        self._calls = [[] for _ in self.blocks]
        for number, batch in enumerate(batches):
            with _recording(self.blocks) as (inputs, calls, outputs), torch.no_grad():
                self.model.base_model(input_ids=batch.to(device, torch.long), use_cache=False)
            for block, recorded in enumerate(calls):
                if len(recorded) != 1:
                    raise self._refused(block, f"{len(recorded)} calls in one forward pass", "one call")
                self._calls[block].append(recorded[0])
            self.hidden.append(inputs[0][0])
            if number == 0:
                self._check([i[0] for i in inputs], [o[0] for o in outputs])

    def _check(self, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Replay the first batch through the unpruned blocks and compare with what the forward pass computed."""
        for block, (given, expected) in enumerate(zip(inputs, outputs, strict=True)):
            if block and not torch.equal(given, outputs[block - 1]):
                raise self._refused(
                    block, "an input other than the previous block's output", "blocks that follow each other"
                )
            with torch.no_grad():
                again = self._calls[block][0].repeat(self.blocks[block], given)
            if not torch.equal(again, expected):
                worst = float((again.float() - expected.float()).abs().max())
                raise self._refused(block, f"a replay that differs by up to {worst:.2g}", "the dense forward's output")

    def _refused(self, block: int, got: str, expected: str) -> ModelStructureError:
        return ModelStructureError(
            f"{self.inventory.blocks}.{block}",
            got,
            expected,
            "This model cannot be pruned block after block: set calibration.propagation to dense.",
        )


@contextmanager
def _recording(
    blocks: list[nn.Module],
) -> Iterator[tuple[list[list[Tensor]], list[list[_Call]], list[list[Tensor]]]]:
    """Yield lists, one entry per block, that fill with inputs, calls and outputs during a forward pass."""
    inputs: list[list[Tensor]] = [[] for _ in blocks]
    calls: list[list[_Call]] = [[] for _ in blocks]
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    handles = []
    for index, block in enumerate(blocks):

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> None:
            if args:
                inputs[index].append(args[0])
                calls[index].append(_Call(None, args[1:], dict(kwargs)))
            else:
                name = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
                inputs[index].append(kwargs[name])
                calls[index].append(_Call(name, (), {k: v for k, v in kwargs.items() if k != name}))

        def after(_: Any, _args: Any, result: Any, index: int = index) -> None:
            outputs[index].append(_hidden_of(result))

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    try:
        yield inputs, calls, outputs
    finally:
        for handle in handles:
            handle.remove()


def _hidden_of(result: Any) -> Tensor:
    """Return the hidden state among what a block returned: the result, or the first of a tuple."""
    hidden: Tensor = result if isinstance(result, Tensor) else result[0]
    return hidden
