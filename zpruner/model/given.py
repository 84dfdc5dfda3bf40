"""Token windows in any form that a program has them in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Number
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, ShapeMismatchError
from zpruner.model.limits import check_windows

if TYPE_CHECKING:
    from transformers import PretrainedConfig

IDS, ATTENDED = "input_ids", "attention_mask"
_TOO_WIDE = (torch.uint16, torch.uint32, torch.uint64)
"""Types that torch has few operations for."""


def as_windows(given: object, config: PretrainedConfig, least: int = 1) -> Tensor:
    """Return token windows, int (windows, seqlen), after checking that a model can read them.

    Args:
        given: a tensor or array; lists of token ids; what a tokenizer returns; rows or a column of a data set.
        config: of the model.
        least: tokens that a window must have.

    Raises:
        ShapeMismatchError, InvalidSettingError: as `check_windows`; windows of several lengths, padded ones; text.
    """
    windows = _tensor(given)
    check_windows(windows, config, least)
    return windows.long() if windows.is_inference() or windows.dtype in _TOO_WIDE else windows


def _tensor(given: object) -> Tensor:
    match given:
        case Tensor():
            return given
        case str() | bytes() | PathLike():
            raise InvalidSettingError(
                "windows", "text", "token ids", "Make windows of a text or its file with zpruner.load_windows."
            )
        case Mapping():
            return _of_mapping(given)
        case np.ndarray() if given.dtype != object:
            return _converted(given)
        case Iterable():
            rows = list(given)
            if all(isinstance(row, Number) for row in rows):  # one window, which has one dimension too few
                return _converted(rows)
            tensors = [_tensor(row) for row in rows]
            matrices = [row[None] if row.ndim == 1 else row for row in tensors]
            shapes = sorted({row.shape[1] for row in matrices if row.ndim == 2})
            if len(shapes) != 1 or any(row.ndim != 2 for row in matrices):
                lengths = " and ".join(map(str, shapes[:3])) or "no"
                raise _refused(f"rows of {lengths} tokens", "windows of one length")
            return torch.cat(matrices)
        case _:
            raise _refused(f"{type(given).__module__}.{type(given).__name__}", "token ids")


def _of_mapping(given: Mapping[str, object]) -> Tensor:
    if IDS not in given:
        raise _refused(f"the keys {', '.join(map(str, given))}", IDS)
    attended = given.get(ATTENDED)
    if attended is not None and not bool(_tensor(attended).all()):
        raise _refused("padded windows (zeros in attention_mask)", "windows full of text")
    return _tensor(given[IDS])


def _converted(values: object) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise _refused("values that are no 64-bit integers", "token ids") from None


def _refused(got: str, expected: str) -> ShapeMismatchError:
    return ShapeMismatchError(
        "windows", got, f"{expected}: integers of shape (windows, seqlen)", "Make them with zpruner.load_windows."
    )
