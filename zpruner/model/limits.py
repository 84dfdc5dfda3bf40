"""What a model can read: its vocabulary, and how many tokens at once."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, ShapeMismatchError, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length"),
    *("max_sequence_length", "n_ctx", "context_length"),
)
"""What configurations call the most tokens at once."""


def limits_of(config: PretrainedConfig) -> tuple[int, int | None]:
    """Return the size of a model's vocabulary, and the most tokens that it takes at once (None: any number)."""
    text = config.get_text_config()
    lengths = (getattr(text, name, None) for name in _LENGTHS)
    return int(text.vocab_size), next((n for n in lengths if isinstance(n, int) and n > 0), None)


def check_windows(windows: Tensor, config: PretrainedConfig, least: int = 1) -> None:
    """Raise where token windows, int (windows, seqlen), are not what a model of that configuration can read.

    Raises:
        ShapeMismatchError: not a matrix of integers, no window, or windows of fewer than `least` tokens.
        InvalidSettingError: an id outside the vocabulary, or more tokens than the model takes at once.
    """
    integers = not (windows.is_floating_point() or windows.is_complex() or windows.dtype == torch.bool)
    there = windows.layout == torch.strided and not (windows.is_meta or windows.is_nested or windows.is_quantized)
    if not (integers and there and windows.ndim == 2) or len(windows) < 1 or windows.shape[1] < least:
        raise ShapeMismatchError(
            "windows",
            f"{windows.dtype} of shape {'?' if windows.is_nested else tuple(windows.shape)} on {windows.device}",
            f"integers of shape (windows, seqlen), at least (1, {least})",
            "Make them with zpruner.load_windows.",
        )
    vocab_size, longest = limits_of(config)
    lowest, highest = (int(extreme) for extreme in torch.aminmax(windows.long()))
    if lowest < 0 or highest >= vocab_size:
        raise InvalidSettingError(
            "windows",
            f"token id {lowest if lowest < 0 else highest}",
            f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
            "Use the model's own tokenizer.",
        )
    if longest is not None and windows.shape[1] > longest:
        raise InvalidSettingError(
            "windows",
            f"{windows.shape[1]} tokens each",
            f"at most {longest}, the most tokens that the model takes at once",
            "Make shorter ones.",
        )


@contextmanager
def reading(model: PreTrainedModel, windows: Tensor) -> Iterator[None]:
    """Say so where the model's own code fails on windows of this length, whatever its configuration says.

    Raises:
        InvalidSettingError: it fails on one window, and does not on a shorter one.
    """
    try:
        yield
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        seqlen = windows.shape[1]
        if "memory" in str(error).lower() or _takes(model, windows, seqlen) or not _takes(model, windows, 1):
            raise
        longest = bisect(range(1, seqlen), False, key=lambda length: not _takes(model, windows, length))
        raise InvalidSettingError(
            "windows",
            f"{seqlen} tokens each",
            f"at most {longest}, on which its code does not fail ({one_line(str(error))})",
            "Make shorter ones.",
        ) from error


def _takes(model: PreTrainedModel, windows: Tensor, length: int) -> bool:
    """Return whether the decoder runs on the first tokens of a window."""
    ids = windows[:1, :length].to(model.device, torch.long)
    try:
        with torch.no_grad():
            model.base_model(input_ids=ids, use_cache=False)
    except (AssertionError, IndexError, RuntimeError, ValueError):
        return False
    return True
