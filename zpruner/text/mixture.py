"""Calibration windows of one source or of several, a share of the windows from each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from zpruner.settings.mixture import window_counts
from zpruner.settings.texts import SELF, CalibrationSettings, MixedSettings
from zpruner.sources import Documents, TokenTable
from zpruner.text.tokenizer import Tokenizer, document_encoding, encoding_of
from zpruner.text.windows import calibration_windows, check_length


def mixed_windows(
    settings: CalibrationSettings,
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    longest: int | None,
    read: Callable[[MixedSettings], Documents | TokenTable],
    write: Callable[[MixedSettings, int], Tensor],
) -> tuple[Tensor, tuple[int, ...]]:
    """Return the calibration windows, int32 (nsamples, seqlen), and what all begin with by the rule `bos`.

    Each source gives its share of them, and they take turns.

    Args:
        settings: of the calibration.
        tokenizer: the model's; None will do for token tables.
        vocab_size: ids must lie below it.
        longest: the most tokens that the model takes at once; None: any number.
        read: gives the text of a source.
        write: gives as many windows, int32 (windows, seqlen), that the model has written.

    Raises:
        InvalidSettingError, TextTooShortError, SourceError: as `calibration_windows`, for each source.
    """
    check_length(settings.seqlen, longest)
    found, begins = [], []
    for source, count in zip(settings.sources, window_counts(settings), strict=True):
        if source.source == SELF:
            assert tokenizer is not None
            found.append(write(source, count))
            begins.append(document_encoding(tokenizer, settings.bos).begin)
            continue
        text = read(source)
        windows = calibration_windows(
            text,
            tokenizer,
            nsamples=count,
            seqlen=settings.seqlen,
            seed=settings.seed,
            vocab_size=vocab_size,
            longest=longest,
            sampling=source.sampling,
            part=source.part,
            bos=settings.bos,
        )
        found.append(windows)
        begins.append(encoding_of(text, tokenizer, settings.bos).begin)
    return in_turns(found), begins[0] if len(set(begins)) == 1 else ()


def in_turns(parts: Sequence[Tensor]) -> Tensor:
    """Return the windows of all parts, each part's in its order and spread evenly over the whole.

    Of part j, window k stands at (k + 1/2) / n_j of the way, an earlier part's before a later one's. So every stretch
    (a batch, a half, what is held out) holds each source about as often as the whole does.
    """
    places = sorted(
        (Fraction(2 * index + 1, 2 * len(part)), number, index)
        for number, part in enumerate(parts)
        for index in range(len(part))
    )
    return torch.stack([parts[number][index] for _, number, index in places])
