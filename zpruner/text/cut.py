"""Windows cut out of token ids, each after the tokens that the model expects in front."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def consecutive(ids: Ids, seqlen: int, step: int, begin: tuple[int, ...], most: int | None = None) -> Ids:
    """Return consecutive windows, int64 (windows, seqlen), `begin` in front of each.

    Args:
        ids: of the text.
        seqlen: tokens per window, `begin` included.
        step: tokens of the text from one window to the next.
        begin: a window whose text begins with them already gets them once.
        most: the most windows that are wanted; None: all.
    """
    content = seqlen - len(begin)
    if not begin:
        if len(ids) < seqlen:
            return np.empty((0, seqlen), dtype=np.int64)
        return np.lib.stride_tricks.sliding_window_view(ids, seqlen)[::step][:most]
    found, place = _places(ids, begin), 0
    starts: list[int] = []
    while most is None or len(starts) < most:
        while place in found:
            place += len(begin)
        if place + content > len(ids):
            break
        starts.append(place)
        place += step
    return _behind(begin, ids[np.asarray(starts, dtype=np.int64)[:, None] + np.arange(content)])


def at_random(ids: Ids, seqlen: int, begin: tuple[int, ...], random: np.random.Generator) -> Ids:
    """Return one window, int64 (seqlen,), at a random offset of ids that are long enough for one.

    Where it would begin with a second `begin`, it starts before the first one.
    """
    content = seqlen - len(begin)
    place = int(random.integers(len(ids) - content + 1))
    found = _places(ids, begin)
    while place in found and place > 0:
        place -= 1
    return _behind(begin, ids[None, place : place + content])[0]


def _behind(begin: tuple[int, ...], windows: Ids) -> Ids:
    front = np.broadcast_to(np.asarray(begin, dtype=np.int64), (len(windows), len(begin)))
    return np.concatenate([front, windows], axis=1)


def _places(ids: Ids, tokens: tuple[int, ...]) -> set[int]:
    """Return where `tokens` stand in `ids`; nowhere, where there are none."""
    if not tokens or len(ids) < len(tokens):
        return set()
    views = np.lib.stride_tricks.sliding_window_view(ids, len(tokens))
    return set(np.flatnonzero((views == np.asarray(tokens)).all(axis=1)).tolist())
