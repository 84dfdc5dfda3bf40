"""What decoder blocks are called with, recorded in one dense pass, and whether they can be run on their own by that."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from zpruner.calibration.blocks import DecoderBlocks
from zpruner.calibration.calls import Call, left_out
from zpruner.calibration.passes import Pass
from zpruner.calibration.reached import check_blocks_reached
from zpruner.errors import ModelStructureError
from zpruner.execution import Runner

_FEW = 16
"""Tokens of which is seen whether a block's arguments depend on earlier blocks."""


@dataclass(frozen=True)
class Recording:
    """One dense pass of all batches.

    Attributes:
        calls: by block, then batch: what a block is called with beside its hidden state; none where text misses it.
        hidden: the input of the first block, batch by batch: (batch_size, seqlen, width).
    """

    calls: list[list[Call]]
    hidden: list[Tensor]


def record(blocks: DecoderBlocks, runner: Runner, batches: Sequence[Tensor], follow_dense: bool) -> Recording:
    """Record what each block is called with, batch by batch.

    A few tokens run twice, once with another input of the first block, and in one window every block runs twice.
    Where that shows that a block hands on nothing but its hidden state, and weights are in memory, the batches then
    run with the work of the blocks left out.

    Args:
        blocks: of the unpruned model.
        runner: of the model.
        batches: token ids, int (batch_size, seqlen) each.
        follow_dense: whether the blocks are to be replayed in the unpruned model besides.

    Raises:
        ModelStructureError: a block is not a function of the previous block's output, or its replay differs.
        NonFiniteError: NaN or infinity in what a block puts out.
    """
    few = batches[0][:1, :_FEW]
    plain, disturbed = Pass(blocks, compare=True), Pass(blocks, compare=True, disturb=True)
    passes = [Pass(blocks, check=runner.streamed and number == 0) for number in range(len(batches))]
    every = list(zip(passes, batches, strict=True))
    if runner.streamed:  # one pass over the weights for all
        _run(blocks, runner, [*every, (plain, few), (disturbed, few)])
    else:
        _run(blocks, runner, [(plain, few), (disturbed, few), (Pass(blocks, check=True), batches[0][:1])])
        beside = plain.beside_hidden()
        with nullcontext() if beside is None else left_out(blocks.modules, beside):
            _run(blocks, runner, every)
    recording = Recording(_calls(blocks, passes), [recorded.first for recorded in passes])
    _check_independent(blocks, plain, disturbed)
    if follow_dense and plain.written:
        raise ModelStructureError(
            f"model {type(blocks.model).__name__}",
            "blocks that read what earlier ones left in an argument, such as shared keys and values",
            "blocks that hand on what they return, for methods with `correct` or `tune`",
            "Leave out methods with `correct` or `tune`, or set calibration.propagation to dense.",
        )
    return recording


def _run(blocks: DecoderBlocks, runner: Runner, passes: list[tuple[Pass, Tensor]]) -> None:
    """Run windows through the decoder, each watched by its pass."""
    current = local()  # passes may run side by side, each in its thread

    def decode(found: Pass, batch: Tensor) -> None:
        current.found = found
        ids = batch.to(runner.device, torch.long)
        blocks.model.base_model(input_ids=ids, use_cache=False)

    handles = []
    for index, block in enumerate(blocks.modules):

        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index) -> Any:
            return current.found.before(index, args, kwargs)

        def after(block: nn.Module, _args: Any, result: Any, index: int = index) -> None:
            current.found.after(index, block, result)

        handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(block.register_forward_hook(after))
    try:
        for _ in runner.run([partial(decode, *one) for one in passes]):
            pass
    finally:
        for handle in handles:
            handle.remove()


def _calls(blocks: DecoderBlocks, passes: list[Pass]) -> list[list[Call]]:
    """Return what the passes, one per batch, called each block with."""
    found: list[list[Call]] = []
    for index in range(len(blocks.modules)):
        calls = [recorded.calls[index] for recorded in passes]
        for one in calls if any(calls) else ():
            if len(one) != 1:
                raise blocks.refused(index, f"{len(one)} calls in one forward pass", "one call")
        found.append([one[0] for one in calls if one])
    # A block that text never reaches, such as one for images, may stay as it is.
    check_blocks_reached(blocks.inventory, [index for index, calls in enumerate(found) if calls])
    return found


def _check_independent(blocks: DecoderBlocks, plain: Pass, disturbed: Pass) -> None:
    """Refuse a model that gives a block what depends on earlier blocks in ways that a replay does not follow."""
    for index, (before, after) in enumerate(zip(plain.given, disturbed.given, strict=True)):
        for (key, one), (_, other) in zip_longest(before, after, fillvalue=(None, None)):
            if one is None or other is None or not torch.equal(one, other):
                raise blocks.refused(
                    index,
                    f"an argument ({key}) that changes with what earlier blocks put out",
                    "no other input that does than what an earlier block returned",
                )
