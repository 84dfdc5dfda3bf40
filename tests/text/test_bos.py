"""What windows begin with: the tokens that the tokenizer puts before a text by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from zpruner.errors import InvalidSettingError, TextTooShortError
from zpruner.sources import Documents, TokenTable
from zpruner.text import calibration_windows, counted_tokens, encoding_of, evaluation_windows
from zpruner.text.tokenizer import Bos, added_tokens


@dataclass(frozen=True)
class Letters:
    """One token per character, its code; some before and after. `<` stands for the token 1, as a text may write it."""

    before: tuple[int, ...] = (1,)
    after: tuple[int, ...] = ()
    bos_token_id: int | None = 1

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, Any]:
        return {"input_ids": [*self.before, *(1 if one == "<" else ord(one) for one in text), *self.after]}


def _text(*texts: str) -> Documents:
    return Documents("text", texts)


def _codes(windows: torch.Tensor) -> list[str]:
    return ["".join("<" if code == 1 else "[" if code == 2 else chr(code) for code in row) for row in windows.tolist()]


def _evaluated(tokenizer: Any, text: str, **settings: Any) -> list[str]:
    return _codes(evaluation_windows(_text(text), tokenizer, vocab_size=128, **settings))


def test_every_window_begins_with_what_the_tokenizer_adds() -> None:
    assert _evaluated(Letters(), "abcdefgh", seqlen=4) == ["<abc", "<def"]
    assert _evaluated(Letters(), "abcdefgh", seqlen=4, bos="always") == ["<abc", "<def"]
    assert _evaluated(Letters(), "abcdefgh", seqlen=4, bos="never") == ["abcd", "efgh"]
    assert _evaluated(Letters(), "abcdefgh", seqlen=4, bos="published") == ["<abc", "defg"]


def test_a_tokenizer_that_adds_nothing() -> None:
    assert _evaluated(Letters(()), "abcdefgh", seqlen=4) == ["abcd", "efgh"]
    assert _evaluated(Letters(()), "abcdefgh", seqlen=4, bos="always") == ["<abc", "<def"]
    with pytest.raises(InvalidSettingError, match="without a BOS token"):
        _evaluated(Letters((), (), None), "abcdefgh", seqlen=4, bos="always")


def test_an_appended_eos_is_in_no_window() -> None:
    assert _evaluated(Letters((), (2,)), "abcdefg", seqlen=4) == ["abcd"]
    assert _evaluated(Letters((1,), (2,)), "abcdefghi", seqlen=4) == ["<abc", "<def", "<ghi"]
    assert _evaluated(Letters((1,), (2,)), "abcdefg", seqlen=4, bos="published") == ["<abc", "defg"]
    assert _evaluated(Letters((2,), (2,)), "abcdef", seqlen=4) == ["[abc", "[def"]


def test_a_begin_of_several_tokens_is_kept_together() -> None:
    assert _evaluated(Letters((2, 1)), "abcdefgh", seqlen=4) == ["[<ab", "[<cd", "[<ef", "[<gh"]
    with pytest.raises(InvalidSettingError, match="seqlen: got 2, expected at least 3"):
        _evaluated(Letters((2, 1)), "abcdefgh", seqlen=2)


def test_no_second_bos_where_the_text_has_one() -> None:
    assert _evaluated(Letters(), "<abcdefgh", seqlen=4) == ["<abc", "<def"]
    assert _evaluated(Letters(), "<<abcdefgh", seqlen=4) == ["<abc", "<def"]
    # One where a window happens to begin, and one inside of a window, which is text.
    assert _evaluated(Letters(), "abc<defg<hi", seqlen=4) == ["<abc", "<def", "<g<h"]


def test_overlapping_windows_count_every_token_once() -> None:
    found = _evaluated(Letters(), "abcdefghijk", seqlen=5, stride=2)
    assert found == ["<abcd", "<cdef", "<efgh", "<ghij"]
    assert counted_tokens(5, 2, 1) == 2
    assert "".join(window[-2:] for window in found) == "cdefghij"
    # A stride that no window has so many tokens of the text for is that of windows which do not overlap.
    for stride in (None, 4, 5):
        assert _evaluated(Letters(), "abcdefghijk", seqlen=5, stride=stride) == ["<abcd", "<efgh"]
        assert counted_tokens(5, stride, 1) == 4
    assert counted_tokens(5, None, 0) == 5
    assert counted_tokens(6, None, 2) == 4


@given(st.integers(2, 9), st.integers(1, 9), st.sampled_from([(), (1,), (2, 1)]))
def test_what_counts_is_the_text_in_its_order(seqlen: int, stride: int, before: tuple[int, ...]) -> None:
    seqlen = max(seqlen, len(before) + 1)
    text = "".join(map(chr, range(65, 125)))
    windows = _evaluated(Letters(before), text, seqlen=seqlen, stride=min(stride, seqlen))
    assert all(window.startswith(_codes(torch.tensor([before]))[0]) for window in windows)
    count = counted_tokens(seqlen, min(stride, seqlen), len(before))
    first, counted = windows[0][len(before) :], "".join(window[-count:] for window in windows)
    assert text.startswith(first[:-count] + counted)
    assert len(text) - len(first[:-count] + counted) < count


@given(st.integers(3, 9), st.text("abc<", min_size=12, max_size=60).map(lambda text: f"{text}aaaaaaaaa"))
def test_no_window_begins_twice_and_no_token_is_lost(seqlen: int, text: str) -> None:
    windows = _evaluated(Letters(), text, seqlen=seqlen)
    assert all(window[0] == "<" != window[1] for window in windows)
    seen = "".join(window[1:] for window in windows)
    letters = text.replace("<", "")
    assert letters.startswith(seen.replace("<", ""))
    assert len(letters) - len(seen.replace("<", "")) < seqlen


def test_windows_of_documents_begin_with_it_too() -> None:
    texts = _text("abcdefgh", "ab", "<ijklmnop", "qrstuvwx<")
    seen = set()
    for seed in range(60):
        windows = calibration_windows(
            texts, Letters(), nsamples=3, seqlen=5, seed=seed, vocab_size=128, sampling="documents"
        )
        seen |= set(_codes(windows))
    assert all(window[0] == "<" and window[1] != "<" for window in seen)
    assert seen == {
        f"<{text[i : i + 4]}" for text in ("abcdefgh", "ijklmnop", "qrstuvwx<") for i in range(len(text) - 3)
    }


def test_calibration_chooses_among_the_same_windows() -> None:
    text = _text("".join(map(chr, range(40, 120))))
    every = _codes(evaluation_windows(text, Letters(), seqlen=6, vocab_size=128))
    chosen = _codes(calibration_windows(text, Letters(), nsamples=5, seqlen=6, seed=3, vocab_size=128))
    assert chosen == sorted(chosen, key=every.index)
    assert set(chosen) < set(every)
    with pytest.raises(TextTooShortError, match="got 80 tokens, expected at least 85 for 17 windows of 6 tokens"):
        calibration_windows(text, Letters(), nsamples=17, seqlen=6, seed=3, vocab_size=128)


@pytest.mark.parametrize("bos", ["always", "never"])
def test_rows_of_a_table_are_taken_as_they_are(bos: Bos) -> None:
    table = TokenTable("table", np.arange(12, dtype=np.int32).reshape(4, 3))
    assert evaluation_windows(table, Letters(), seqlen=3, vocab_size=12).tolist() == table.input_ids.tolist()
    with pytest.raises(InvalidSettingError, match="for a table of token ids, expected auto"):
        evaluation_windows(table, Letters(), seqlen=3, vocab_size=12, bos=bos)


def _with_template(single: str, **settings: Any) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    special = [("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


@pytest.mark.parametrize(
    ("single", "added"),
    [
        ("$A", ((), ())),
        ("<s> $A", ((1,), ())),
        ("$A </s>", ((), (2,))),
        ("<s> $A </s>", ((1,), (2,))),
        ("<s> $A <s>", ((1,), (1,))),
        ("</s> <s> $A", ((2, 1), ())),
    ],
)
def test_templates_of_real_tokenizers(single: str, added: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    tokenizer = _with_template(single)
    assert added_tokens(tokenizer) == added
    plain = tiny.tokenizer()(tiny.words(100))["input_ids"]
    windows = evaluation_windows(_text(tiny.words(100)), tokenizer, seqlen=16, vocab_size=tiny.VOCABULARY)
    begin = len(added[0])
    assert torch.equal(windows[:, begin:].flatten(), torch.tensor(plain[: windows[:, begin:].numel()]))
    assert windows[:, :begin].tolist() == [list(added[0])] * len(windows)


def test_flags_do_not_decide() -> None:
    """What a tokenizer says of itself and what it does may differ."""
    tokenizer = tiny.tokenizer()
    tokenizer.init_kwargs["add_bos_token"] = True
    assert encoding_of(_text("a"), tokenizer, "auto").begin == tuple(tokenizer("")["input_ids"])
