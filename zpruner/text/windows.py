"""Token windows: what the model sees in calibration and evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zpruner.errors import InvalidSettingError, ShapeMismatchError, SourceError, TextTooShortError
from zpruner.sources import Documents, TokenTable

if TYPE_CHECKING:
    pass

Sampling = Literal["stream", "documents"]

SEPARATOR = "\n\n"


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, list[int]]:
        """Return the token ids of `text` under "input_ids", special tokens included."""
        ...


def calibration_windows(
    text: Documents | TokenTable,
    tokenizer: Tokenizer | None,
    *,
    nsamples: int,
    seqlen: int,
    seed: int,
    vocab_size: int,
    longest: int | None = None,
    sampling: Sampling = "stream",
    part: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Return `nsamples` windows of `seqlen` token ids, chosen at random: int32 (nsamples, seqlen).

    "stream" joins the documents by two newlines, tokenises them at once, cuts consecutive windows and chooses among
    them without replacement, keeping their order. "documents" is the protocol that GPTQ, SparseGPT and Wanda use on
    C4 (Frantar et al. 2023, arXiv:2301.00774): documents in random order, each one longer than the window giving
    one window at a random offset; no document twice. Rows of a token table are windows as they are.

    Randomness is numpy's PCG64 seeded with `seed`.

    Args:
        text: documents, or a table of token ids with rows of `seqlen`.
        tokenizer: the model's; None will do for a token table.
        nsamples: number of windows, at least 1.
        seqlen: tokens per window, at least 2.
        seed: of the random choice, at least 0.
        vocab_size: ids must lie below it.
        longest: the most tokens that the model takes at once; None: any number.
        sampling: see above; "documents" needs documents.
        part: (start, stop), shares in [0, 1] of the documents (of the tokens of a single document, of the rows of
            a token table) to take the windows from. Parts that do not overlap give windows that share no text.

    Raises:
        InvalidSettingError: an argument out of range.
        TextTooShortError: fewer tokens than the windows need.
        SourceError: a token id outside the vocabulary.
    """
    check_length(seqlen, longest)
    _require_at_least("nsamples", nsamples, 1)
    _require_at_least("seed", seed, 0)
    random = np.random.Generator(np.random.PCG64(seed))
    match sampling:
        case "stream":
            ids = _consecutive_ids(text, tokenizer, nsamples, seqlen, seqlen, part)
            every = ids[: len(ids) // seqlen * seqlen].reshape(-1, seqlen)
            windows = every[np.sort(random.permutation(len(every))[:nsamples])]
        case "documents":
            windows = _document_windows(text, tokenizer, nsamples, seqlen, part, random)
        case _:
            assert_never(sampling)
    return _checked(windows, text.source, vocab_size)


def evaluation_windows(
    text: Documents | TokenTable,
    tokenizer: Tokenizer | None,
    *,
    seqlen: int,
    vocab_size: int,
    longest: int | None = None,
    windows: int | None = None,
    part: tuple[float, float] = (0.0, 1.0),
    stride: int | None = None,
) -> Tensor:
    """Return the first `windows` (None: all) consecutive windows of the text: int32 (windows, seqlen).

    The published protocol of perplexity on WikiText-2: documents joined by two newlines and tokenised at once; the
    remainder that fills no window is dropped. Windows start `stride` tokens apart (None: `seqlen`, as published).
    Other arguments and errors as in `calibration_windows`.
    """
    check_length(seqlen, longest)
    if windows is not None:
        _require_at_least("windows", windows, 1)
    step = seqlen if stride is None else stride
    if not 1 <= step <= seqlen or (step < seqlen and isinstance(text, TokenTable)):
        got = "a stride for a table of token ids" if isinstance(text, TokenTable) else str(stride)
        raise InvalidSettingError("stride", got, f"1 to seqlen ({seqlen}), of a text", "Correct it.")
    ids = _consecutive_ids(text, tokenizer, windows or 1, seqlen, step, part)
    every = np.lib.stride_tricks.sliding_window_view(ids, seqlen)[::step]
    return _checked(every[:windows], text.source, vocab_size)


def windows_hash(windows: Tensor) -> str:
    """Return the SHA-256 of windows, int32 (windows, seqlen), as 64 hexadecimal digits.

    It covers the shape as two little-endian int64, then the ids as little-endian int32, row by row.
    """
    if windows.ndim != 2 or windows.dtype != torch.int32:
        raise ShapeMismatchError(
            "windows",
            f"{windows.dtype} of shape {tuple(windows.shape)}",
            "int32 of shape (windows, seqlen)",
            "Make them with calibration_windows or evaluation_windows.",
        )
    digest = hashlib.sha256(np.asarray(windows.shape, dtype="<i8").tobytes())
    digest.update(windows.cpu().numpy().astype("<i4").tobytes())
    return digest.hexdigest()


def check_length(seqlen: int, longest: int | None, where: str = "seqlen") -> None:
    """Raise InvalidSettingError where a window has more tokens than the model takes at once (None: any number)."""
    if longest is not None and seqlen > longest:
        raise InvalidSettingError(
            where, str(seqlen), f"at most {longest}, the most tokens that the model takes at once", "Lower it."
        )


def _consecutive_ids(
    text: Documents | TokenTable,
    tokenizer: Tokenizer | None,
    windows: int,
    seqlen: int,
    stride: int,
    part: tuple[float, float],
) -> NDArray[np.int64]:
    """Return all token ids of the part, enough for at least `windows` windows that start `stride` apart."""
    _require_at_least("seqlen", seqlen, 2)
    match text:
        case TokenTable():
            if text.input_ids.shape[1] != seqlen:
                raise InvalidSettingError(
                    "seqlen",
                    str(seqlen),
                    f"{text.input_ids.shape[1]}, the length of the rows of {text.source}",
                    "Set seqlen to it.",
                )
            ids = text.input_ids[_bounds(part, len(text.input_ids))].astype(np.int64).reshape(-1)
        case Documents(texts=(single,)):
            ids = _tokenize(tokenizer, single, text.source)
            ids = ids[_bounds(part, len(ids))]
        case Documents(texts=texts):
            ids = _tokenize(tokenizer, SEPARATOR.join(texts[_bounds(part, len(texts))]), text.source)
        case _:
            assert_never(text)
    needed = (windows - 1) * stride + seqlen
    if len(ids) < needed:
        raise TextTooShortError(
            f"{text.source}, part {part[0]:g} to {part[1]:g}",
            f"{len(ids)} tokens",
            f"at least {needed} for {windows} windows of {seqlen} tokens",
            "Lower the number of windows or seqlen, widen the part, or give a longer text.",
        )
    return ids


def _document_windows(
    text: Documents | TokenTable,
    tokenizer: Tokenizer | None,
    nsamples: int,
    seqlen: int,
    part: tuple[float, float],
    random: np.random.Generator,
) -> NDArray[np.int64]:
    """Return one window at a random offset from each of `nsamples` random documents longer than `seqlen`."""
    _require_at_least("seqlen", seqlen, 2)
    if isinstance(text, TokenTable):
        raise InvalidSettingError(
            "sampling",
            "'documents' for a table of token ids",
            "'stream': its rows are windows already",
            "Set it.",
        )
    if len(text.texts) == 1:
        raise InvalidSettingError(
            "sampling",
            f"'documents' for the single document of {text.source}",
            "a text of several documents",
            "Set sampling to stream, or documents to lines.",
        )
    texts = text.texts[_bounds(part, len(text.texts))]
    windows: list[NDArray[np.int64]] = []
    longest = 0
    for index in random.permutation(len(texts)):
        ids = _tokenize(tokenizer, texts[index], text.source)
        longest = max(longest, len(ids))
        if len(ids) > seqlen:
            offset = int(random.integers(len(ids) - seqlen + 1))
            windows.append(ids[offset : offset + seqlen])
            if len(windows) == nsamples:
                return np.stack(windows)
    raise TextTooShortError(
        f"{text.source}, part {part[0]:g} to {part[1]:g}",
        f"{len(windows)} of {len(texts)} documents longer than {seqlen} tokens (the longest has {longest})",
        f"at least {nsamples} for {nsamples} windows of {seqlen} tokens",
        "Lower nsamples or seqlen, widen the part, or set sampling to stream.",
    )


def _tokenize(tokenizer: Tokenizer | None, text: str, source: str) -> NDArray[np.int64]:
    if tokenizer is None:
        raise SourceError(
            source,
            "text, and a model without a tokenizer",
            "a tokenizer, or a table with a column input_ids",
            "Give a model with its tokenizer files, or tokenise the text and give the table.",
        )
    # verbose=False: that the whole text is longer than the model's context is no concern here.
    return np.asarray(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)


def _bounds(part: tuple[float, float], count: int) -> slice:
    """Return the slice of `count` things between two shares; equal shares give equal bounds: parts can adjoin."""
    start, stop = part
    if not 0.0 <= start < stop <= 1.0:
        raise InvalidSettingError("part", f"{start:g} to {stop:g}", "0 <= start < stop <= 1", "Correct it.")
    return slice(round(start * count), round(stop * count))


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidSettingError(name, str(value), f"at least {least}", "Correct it.")


def _checked(windows: NDArray[np.int64], source: str, vocab_size: int) -> Tensor:
    """Return the windows as an int32 tensor after checking every id."""
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= vocab_size:
        raise SourceError(
            source,
            f"token id {low if low < 0 else high}",
            f"ids from 0 to {vocab_size - 1}, the model's vocabulary",
            "Give the tokenizer, or the token ids, made for this model.",
        )
    return torch.from_numpy(windows.astype(np.int32))
