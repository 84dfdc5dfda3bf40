"""Texts too long to be tokenised at once, in bounded time and memory: ids take over 100 times a text's memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zpruner.text.cut import consecutive
from zpruner.text.tokenizer import Encoding, Ids

AT_ONCE = 1 << 24
"""Characters that are tokenised at once."""
PIECE = 1 << 16
_CHARACTERS = 8
"""Per token: more than tokenizers take on average."""
_WINDOWS = 16
"""That a piece has room for."""


def first_ids(encoding: Encoding, text: str, source: str, needed: int | None) -> Ids:
    """Return the ids of a text piece by piece, at least the first `needed` (None: all)."""
    found, count = [], 0
    for piece in pieces_of(text, PIECE):
        found.append(encoding.ids(piece, source))
        count += len(found[-1])
        if needed is not None and count >= needed:
            break
    return np.concatenate(found)


def windows_of_pieces(
    encoding: Encoding, text: str, source: str, nsamples: int, seqlen: int, random: np.random.Generator
) -> Ids:
    """Return `nsamples` windows, or fewer where the text has no more, of random pieces, in the text's order.

    No piece gives more of them than it must.
    """
    pieces = list(pieces_of(text, max(PIECE, _WINDOWS * _CHARACTERS * seqlen)))
    each, count = -(-nsamples // len(pieces)), 0
    windows: dict[int, Ids] = {}
    for index in random.permutation(len(pieces)):
        ids = encoding.ids(pieces[index], source)
        every = consecutive(ids, seqlen, seqlen - len(encoding.begin), encoding.begin)
        windows[int(index)] = every[np.sort(random.permutation(len(every))[: min(each, nsamples - count)])]
        count += len(windows[int(index)])
        if count == nsamples:
            break
    return np.concatenate([windows[index] for index in sorted(windows)])


def pieces_of(text: str, size: int) -> Iterator[str]:
    """Yield a text in pieces of at most `size` characters, cut before a space or line end where there is one."""
    start = 0
    while len(text) - start > size:
        half, stop = start + max(1, size // 2), start + size
        cut = max(text.rfind(" ", half, stop), text.rfind("\n", half, stop))
        stop = cut if cut > 0 else stop
        yield text[start:stop]
        start = stop
    yield text[start:]
