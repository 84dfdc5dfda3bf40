"""What a model can read: its vocabulary, and how many tokens at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, ShapeMismatchError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def limits_of(config: PretrainedConfig) -> tuple[int, int | None]:
    """Return the size of a model's vocabulary, and the most tokens that it takes at once (None: any number)."""
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None)
    return int(text.vocab_size), longest if isinstance(longest, int) and longest > 0 else None


def check_windows(windows: Tensor, config: PretrainedConfig, batch_size: int, least: int = 1) -> None:
    """Raise where token windows, int (windows, seqlen), are not what a model of that configuration can read.

    Raises:
        ShapeMismatchError: not a matrix of integers, no window, or windows of fewer than `least` tokens.
        InvalidSettingError: an id outside the vocabulary, or a batch size below 1.
    """
    fits = windows.ndim == 2 and not (windows.is_floating_point() or windows.dtype == torch.bool)
    if not fits or len(windows) < 1 or windows.shape[1] < least:
        raise ShapeMismatchError(
            "windows",
            f"{windows.dtype} of shape {tuple(windows.shape)}",
            f"integers of shape (windows, seqlen), at least (1, {least})",
            "Make them with load_windows.",
        )
    vocab_size, _ = limits_of(config)
    lowest, highest = (int(extreme) for extreme in torch.aminmax(windows))
    if lowest < 0 or highest >= vocab_size:
        raise InvalidSettingError(
            "windows",
            f"token id {lowest if lowest < 0 else highest}",
            f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
            "Use the model's own tokenizer.",
        )
    if batch_size < 1:
        raise InvalidSettingError("batch_size", repr(batch_size), "at least 1", "Correct it.")
