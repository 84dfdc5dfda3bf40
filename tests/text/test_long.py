"""Texts that are too long to be tokenised at once."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpruner.errors import TextTooShortError
from zpruner.sources import Documents
from zpruner.text import calibration_windows, evaluation_windows, long, windows
from zpruner.text.long import pieces_of

AT_ONCE = 2000


class Counting:
    """One token per character, after a BOS; counts the characters that it has met, and refuses long texts."""

    def __init__(self) -> None:
        self.met = 0

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, list[int]]:
        assert len(text) <= AT_ONCE
        self.met += len(text)
        return {"input_ids": [1, *map(ord, text)]}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (long, windows):
        monkeypatch.setattr(module, "AT_ONCE", AT_ONCE)
    monkeypatch.setattr(long, "PIECE", 500)
    monkeypatch.setattr(long, "_CHARACTERS", 2)


LETTERS = "".join(chr(33 + index % 90) for index in range(50_000))


@given(st.text("ab \n", max_size=60), st.integers(1, 12))
def test_pieces_lose_nothing_and_end_before_a_space(text: str, size: int) -> None:
    pieces = list(pieces_of(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) <= size for piece in pieces)
    for piece, after in pairwise(pieces):
        assert piece
        assert after[0] in " \n" or not {" ", "\n"} & set(piece[max(1, size // 2) :])


@pytest.mark.parametrize("texts", [(LETTERS,), (LETTERS[:30_000], LETTERS[30_000:])])
def test_evaluation_takes_what_the_windows_need_from_the_front(texts: tuple[str, ...]) -> None:
    tokenizer = Counting()
    found = evaluation_windows(Documents("text", texts), tokenizer, seqlen=64, vocab_size=128, windows=20)
    assert found[:, 0].tolist() == [1] * 20
    assert "".join(map(chr, found[:, 1:].flatten().tolist())) == LETTERS[: 20 * 63]
    assert tokenizer.met < 3 * 20 * 64
    everything = evaluation_windows(Documents("text", (LETTERS,)), tokenizer, seqlen=64, vocab_size=128)
    assert "".join(map(chr, everything[:, 1:].flatten().tolist())) == LETTERS[: 50_000 // 63 * 63]


def test_calibration_takes_random_pieces() -> None:
    tokenizer = Counting()

    def chosen(seed: int, nsamples: int = 8, part: tuple[float, float] = (0.0, 1.0)) -> list[str]:
        found = calibration_windows(
            Documents("text", (LETTERS,)), tokenizer, nsamples=nsamples, seqlen=32, seed=seed, vocab_size=128, part=part
        )
        assert found.shape == (nsamples, 32)
        return ["".join(map(chr, row[1:])) for row in found.tolist()]

    first = chosen(0)
    assert tokenizer.met < 20_000
    assert first == chosen(0) != chosen(1)
    assert all(window in LETTERS for window in first)
    many = chosen(2, nsamples=700)
    assert len(many) == 700
    with pytest.raises(TextTooShortError, match="expected at least 62000 for 2000 windows of 32 tokens"):
        chosen(2, nsamples=2000)


def test_parts_of_a_long_text_share_nothing() -> None:
    text = Documents("text", ("a" * 6000 + "b" * 6000,))
    for part, letter in (((0.0, 0.5), "a"), ((0.5, 1.0), "b")):
        found = calibration_windows(text, Counting(), nsamples=40, seqlen=32, seed=0, vocab_size=128, part=part)
        assert set(found[:, 1:].flatten().tolist()) == {ord(letter)}
