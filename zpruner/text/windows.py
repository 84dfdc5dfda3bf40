"""Token windows: what the model sees in calibration and evaluation."""

from __future__ import annotations

import hashlib
from typing import Literal, assert_never

import numpy as np
import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, ShapeMismatchError, SourceError, TextTooShortError
from zpruner.sources import Documents, TokenTable
from zpruner.text.cut import at_random, consecutive
from zpruner.text.long import AT_ONCE, first_ids, windows_of_pieces
from zpruner.text.tokenizer import Bos, Encoding, Ids, Tokenizer, encoding_of

Sampling = Literal["stream", "documents"]

SEPARATOR = "\n\n"
Part = tuple[float, float]


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
    part: Part = (0.0, 1.0),
    bos: Bos = "auto",
) -> Tensor:
    """Return `nsamples` windows of `seqlen` token ids, chosen at random: int32 (nsamples, seqlen).

    "stream" joins the documents by two newlines, tokenises them at once, cuts consecutive windows and chooses among
    them without replacement, keeping their order. "documents" is the protocol that GPTQ, SparseGPT and Wanda use on
    C4 (Frantar et al. 2023, arXiv:2301.00774): documents in random order, each one longer than the window giving
    one window at a random offset; no document twice. Rows of a token table are windows as they are.

    A stream of more than AT_ONCE characters is cut into pieces before spaces and line ends, and as many random ones of
    them are tokenised as the windows need.

    Randomness is numpy's PCG64 seeded with `seed`.

    Args:
        text: documents, or a table of token ids with rows of `seqlen`.
        tokenizer: the model's; None will do for a token table.
        nsamples: number of windows, at least 1.
        seqlen: tokens per window, at least 2, what it begins with included.
        seed: of the random choice, at least 0.
        vocab_size: ids must lie below it.
        longest: the most tokens that the model takes at once; None: any number.
        sampling: see above; "documents" needs documents.
        part: (start, stop), shares in [0, 1] of the documents (of the tokens of a single document, of the rows of
            a token table) to take the windows from. Parts that do not overlap give windows that share no text.
        bos: what windows begin with, see `Bos`; rows of a token table are taken as they are. An EOS that the tokenizer
            appends to a text is in no window.

    Raises:
        InvalidSettingError: an argument out of range.
        TextTooShortError: fewer tokens than the windows need.
        SourceError: a token id outside the vocabulary.
    """
    check_length(seqlen, longest)
    _require_at_least("nsamples", nsamples, 1)
    _require_at_least("seed", seed, 0)
    encoding = _encoding(text, tokenizer, bos, seqlen)
    random = np.random.Generator(np.random.PCG64(seed))
    match sampling:
        case "stream":
            windows = _stream_windows(text, encoding, nsamples, seqlen, part, random)
        case "documents":
            windows = _document_windows(text, encoding, nsamples, seqlen, part, random)
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
    part: Part = (0.0, 1.0),
    stride: int | None = None,
    bos: Bos = "auto",
) -> Tensor:
    """Return the first `windows` (None: all) consecutive windows of the text: int32 (windows, seqlen).

    Documents are joined by two newlines and tokenised at once; the remainder that fills no window is dropped. Windows
    start `stride` tokens of the text apart (None: as many as a window has of it). With `bos="published"` this is the
    protocol of the published perplexities on WikiText-2. Other arguments and errors as in `calibration_windows`.
    """
    check_length(seqlen, longest)
    if windows is not None:
        _require_at_least("windows", windows, 1)
    encoding = _encoding(text, tokenizer, bos, seqlen)
    if stride not in (None, seqlen) and (isinstance(text, TokenTable) or stride not in range(1, seqlen)):
        got = "a stride for a table of token ids" if isinstance(text, TokenTable) else str(stride)
        raise InvalidSettingError(
            "stride", got, f"1 to seqlen ({seqlen}), of a text", "Leave it out: windows then do not overlap."
        )
    step = counted_tokens(seqlen, stride, len(encoding.begin))
    ids = _ids(text, encoding, seqlen, part, None if windows is None else windows * seqlen)
    found = consecutive(ids, seqlen, step, encoding.begin, windows)
    if len(found) < (windows or 1):
        needed = ((windows or 1) - 1) * step + seqlen - len(encoding.begin)
        raise _too_short(text, part, len(ids), needed, windows or 1, seqlen)
    return _checked(found, text.source, vocab_size)


def counted_tokens(seqlen: int, stride: int | None, begin: int) -> int:
    """Return how many of a window's last tokens count in perplexity: what it begins with is never predicted.

    Args:
        seqlen: tokens per window.
        stride: of windows that overlap; None: they do not.
        begin: number of tokens that every window begins with.
    """
    return min(seqlen if stride is None else stride, seqlen - begin)


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


def _encoding(text: Documents | TokenTable, tokenizer: Tokenizer | None, bos: Bos, seqlen: int) -> Encoding:
    encoding = encoding_of(text, tokenizer, bos)
    _require_at_least("seqlen", seqlen, max(2, len(encoding.begin) + 1))
    return encoding


def _stretch(text: Documents, part: Part) -> tuple[str, Part]:
    """Return the joined documents of a part, and the part of their tokens: a single one is parted by tokens.

    One that is too long to be tokenised at once is parted by characters.
    """
    if len(text.texts) > 1:
        return SEPARATOR.join(text.texts[_bounds(part, len(text.texts))]), (0.0, 1.0)
    whole = text.texts[0]
    return (whole, part) if len(whole) <= AT_ONCE else (whole[_bounds(part, len(whole))], (0.0, 1.0))


def _ids(text: Documents | TokenTable, encoding: Encoding, seqlen: int, part: Part, needed: int | None) -> Ids:
    """Return the token ids of a part; where it is too long to be tokenised at once, at least `needed` (None: all)."""
    if isinstance(text, TokenTable):
        if text.input_ids.shape[1] != seqlen:
            raise InvalidSettingError(
                "seqlen",
                str(seqlen),
                f"{text.input_ids.shape[1]}, the length of the rows of {text.source}",
                "Set seqlen to it.",
            )
        return text.input_ids[_bounds(part, len(text.input_ids))].astype(np.int64).reshape(-1)
    joined, part = _stretch(text, part)
    if len(joined) > AT_ONCE:
        return first_ids(encoding, joined, text.source, needed)
    ids = encoding.ids(joined, text.source)
    return ids[_bounds(part, len(ids))]


def _stream_windows(
    text: Documents | TokenTable,
    encoding: Encoding,
    nsamples: int,
    seqlen: int,
    part: Part,
    random: np.random.Generator,
) -> Ids:
    """Return `nsamples` of the consecutive windows of a text."""
    content = seqlen - len(encoding.begin)
    if isinstance(text, Documents) and len(joined := _stretch(text, part)[0]) > AT_ONCE:
        found = windows_of_pieces(encoding, joined, text.source, nsamples, seqlen, random)
        tokens = len(found) * content
    else:
        ids = _ids(text, encoding, seqlen, part, None)
        every, tokens = consecutive(ids, seqlen, content, encoding.begin), len(ids)
        found = every[np.sort(random.permutation(len(every))[:nsamples])]
    if len(found) < nsamples:
        raise _too_short(text, part, tokens, nsamples * content, nsamples, seqlen)
    return found


def _document_windows(
    text: Documents | TokenTable,
    encoding: Encoding,
    nsamples: int,
    seqlen: int,
    part: Part,
    random: np.random.Generator,
) -> Ids:
    """Return one window at a random offset from each of `nsamples` random documents longer than `seqlen`."""
    if isinstance(text, TokenTable):
        raise InvalidSettingError(
            "sampling",
            "'documents' for a table of token ids",
            "'stream': its rows are windows already",
            "Set sampling to stream.",
        )
    if len(text.texts) == 1:
        raise InvalidSettingError(
            "sampling",
            f"'documents' for the single document of {text.source}",
            "a text of several documents",
            "Set sampling to stream, or documents to lines.",
        )
    texts = text.texts[_bounds(part, len(text.texts))]
    windows: list[Ids] = []
    longest = 0
    for index in random.permutation(len(texts)):
        ids = encoding.ids(texts[index][:AT_ONCE], text.source)
        length = len(ids) + len(encoding.begin)
        longest = max(longest, length)
        if length > seqlen:
            windows.append(at_random(ids, seqlen, encoding.begin, random))
            if len(windows) == nsamples:
                return np.stack(windows)
    raise TextTooShortError(
        f"{text.source}, part {part[0]:g} to {part[1]:g}",
        f"{len(windows)} of {len(texts)} documents longer than {seqlen} tokens (the longest has {longest})",
        f"at least {nsamples} for {nsamples} windows of {seqlen} tokens",
        "Lower nsamples or seqlen, widen the part, or set sampling to stream.",
    )


def _too_short(
    text: Documents | TokenTable, part: Part, tokens: int, needed: int, windows: int, seqlen: int
) -> TextTooShortError:
    return TextTooShortError(
        f"{text.source}, part {part[0]:g} to {part[1]:g}",
        f"{tokens} tokens",
        f"at least {needed} for {windows} windows of {seqlen} tokens",
        "Lower the number of windows or seqlen, widen the part, or give a longer text.",
    )


def _bounds(part: Part, count: int) -> slice:
    """Return the slice of `count` things between two shares; equal shares give equal bounds: parts can adjoin."""
    start, stop = part
    if not 0.0 <= start < stop <= 1.0:
        raise InvalidSettingError(
            "part", f"{start:g} to {stop:g}", "0 <= start < stop <= 1", "Write 0.0, 0.5 for the first half."
        )
    return slice(round(start * count), round(stop * count))


def _require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidSettingError(name, str(value), f"at least {least}", f"Raise it to {least} or more.")


def _checked(windows: Ids, source: str, vocab_size: int) -> Tensor:
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
