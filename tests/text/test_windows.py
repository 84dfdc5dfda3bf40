import hashlib
import logging
import struct
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zpruner.errors import InvalidSettingError, ShapeMismatchError, SourceError, TextTooShortError
from zpruner.sources import Documents, TokenTable
from zpruner.text import windows as windows_module
from zpruner.text.windows import windows_hash

# What windows begin with is tested in test_bos.py.
calibration_windows = partial(windows_module.calibration_windows, bos="published")
evaluation_windows = partial(windows_module.evaluation_windows, bos="published")


class ByteTokenizer:
    """One token per character, its code, after one token 1 at the start."""

    def __call__(self, text: str, *, verbose: bool) -> Mapping[str, list[int]]:
        return {"input_ids": [1, *map(ord, text)]}


BYTES = ByteTokenizer()


def _ids(text: str) -> list[int]:
    return [1, *map(ord, text)]


def _documents(*texts: str) -> Documents:
    return Documents("text", texts)


def test_evaluation_joins_by_two_newlines_and_drops_the_rest() -> None:
    text = _documents("abc", "", "defg")
    windows = evaluation_windows(text, BYTES, seqlen=4, vocab_size=128)
    stream = _ids("abc\n\n\n\ndefg")
    assert windows.dtype == torch.int32
    assert windows.tolist() == [stream[:4], stream[4:8], stream[8:12]]
    assert evaluation_windows(text, BYTES, seqlen=4, vocab_size=128, windows=2).tolist() == windows[:2].tolist()
    assert evaluation_windows(text, BYTES, seqlen=5, vocab_size=128).tolist() == [stream[:5], stream[5:10]]


def test_evaluation_windows_may_overlap() -> None:
    text, stream = _documents("abcdefghij"), _ids("abcdefghij")
    windows = evaluation_windows(text, BYTES, seqlen=4, vocab_size=128, stride=3)
    assert windows.tolist() == [stream[0:4], stream[3:7], stream[6:10]]
    assert evaluation_windows(text, BYTES, seqlen=4, vocab_size=128, stride=4).tolist() == [
        stream[0:4],
        stream[4:8],
    ]
    with pytest.raises(TextTooShortError, match="got 11 tokens, expected at least 13 for 4 windows of 4"):
        evaluation_windows(text, BYTES, seqlen=4, vocab_size=128, stride=3, windows=4)
    with pytest.raises(InvalidSettingError, match="stride: got 5"):
        evaluation_windows(text, BYTES, seqlen=4, vocab_size=128, stride=5)
    table = TokenTable("table", np.array([[1, 2, 3, 4]], dtype=np.int32))
    with pytest.raises(InvalidSettingError, match="a stride for a table of token ids"):
        evaluation_windows(table, None, seqlen=4, vocab_size=128, stride=2)


@given(st.integers(0, 5), st.integers(1, 6), st.integers(2, 5))
def test_stream_takes_distinct_windows_in_order(seed: int, nsamples: int, seqlen: int) -> None:
    text = _documents("".join(map(chr, range(2, 40))), "".join(map(chr, range(40, 100))))
    every = evaluation_windows(text, BYTES, seqlen=seqlen, vocab_size=128).tolist()
    chosen = calibration_windows(text, BYTES, nsamples=nsamples, seqlen=seqlen, seed=seed, vocab_size=128).tolist()
    places = [every.index(window) for window in chosen]
    assert places == sorted(set(places))
    assert len(places) == nsamples


def test_seed_decides() -> None:
    text = _documents("".join(map(chr, range(2, 100))))

    def choose(seed: int) -> list[list[int]]:
        return calibration_windows(text, BYTES, nsamples=5, seqlen=3, seed=seed, vocab_size=128).tolist()

    assert choose(0) == choose(0)
    assert choose(0) != choose(1)
    # What is published with a seed must stay: numpy's PCG64 seeded with 0 permutes 33 windows to 2, 10, 23, 26, 11...
    first = [2, 10, 11, 23, 26]
    stream = _ids("".join(map(chr, range(2, 100))))
    assert choose(0) == [stream[3 * i : 3 * i + 3] for i in first]


def test_documents_sampling_stays_within_one_long_document() -> None:
    texts = [chr(65 + i) * length for i, length in enumerate([3, 9, 4, 12, 30, 5, 6])]
    starts = set()
    for seed in range(40):
        windows = calibration_windows(
            _documents(*texts), BYTES, nsamples=3, seqlen=6, seed=seed, vocab_size=128, sampling="documents"
        )
        letters = [set(window) - {1} for window in windows.tolist()]
        assert all(len(letter) == 1 for letter in letters)
        used = [letter.pop() - 65 for letter in letters]
        assert len(set(used)) == 3
        assert set(used) <= {1, 3, 4, 6}  # 6 letters and the start token are longer than 6; 5 are not
        starts |= {i for i, window in zip(used, windows.tolist(), strict=True) if window[0] == 1}
    assert starts >= {6}  # offset 0 occurs


def test_documents_sampling_reaches_the_last_offset() -> None:
    texts = ["abcdef", "abcdef"]
    seen = {
        tuple(
            calibration_windows(
                _documents(*texts), BYTES, nsamples=1, seqlen=5, seed=seed, vocab_size=128, sampling="documents"
            )[0].tolist()
        )
        for seed in range(30)
    }
    ids = _ids("abcdef")
    assert seen == {tuple(ids[i : i + 5]) for i in range(3)}


@given(st.floats(0, 1), st.integers(2, 30))
def test_parts_share_no_document_and_lose_none(share: float, count: int) -> None:
    text = _documents(*(chr(65 + i) * 5 for i in range(count)))
    seen: list[set[int]] = []
    for part in ((0.0, share), (share, 1.0)):
        try:
            windows = evaluation_windows(text, BYTES, seqlen=2, vocab_size=128, part=part)
            seen.append(set(windows.flatten().tolist()) - {1, 10})
        except (InvalidSettingError, TextTooShortError):
            seen.append(set())
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(65, 65 + count))


def test_a_single_document_is_parted_by_tokens() -> None:
    text = _documents("bcdefghij")  # 10 tokens with the start
    ids = _ids("bcdefghij")
    first = evaluation_windows(text, BYTES, seqlen=2, vocab_size=128, part=(0.0, 0.6)).flatten().tolist()
    second = evaluation_windows(text, BYTES, seqlen=2, vocab_size=128, part=(0.6, 1.0)).flatten().tolist()
    assert (first, second) == (ids[:6], ids[6:])


def test_token_table_rows_are_the_windows() -> None:
    rows = np.arange(12, dtype=np.int32).reshape(4, 3)
    table = TokenTable("table", rows)
    assert evaluation_windows(table, None, seqlen=3, vocab_size=12).tolist() == rows.tolist()
    assert calibration_windows(table, None, nsamples=4, seqlen=3, seed=5, vocab_size=12).tolist() == rows.tolist()
    half = evaluation_windows(table, None, seqlen=3, vocab_size=12, part=(0.5, 1.0))
    assert half.tolist() == rows[2:].tolist()
    with pytest.raises(InvalidSettingError, match="expected 3, the length of the rows of table"):
        evaluation_windows(table, None, seqlen=2, vocab_size=12)
    with pytest.raises(InvalidSettingError, match="windows already"):
        calibration_windows(table, None, nsamples=1, seqlen=3, seed=0, vocab_size=12, sampling="documents")


def test_short_text_says_what_is_there_and_what_is_needed() -> None:
    with pytest.raises(TextTooShortError, match=r"part 0 to 0\.5: got 4 tokens, expected at least 10 for 2 windows"):
        calibration_windows(
            _documents("abc", "def"), BYTES, nsamples=2, seqlen=5, seed=0, vocab_size=128, part=(0.0, 0.5)
        )
    with pytest.raises(TextTooShortError, match="got 4 tokens, expected at least 5"):
        evaluation_windows(_documents("abc"), BYTES, seqlen=5, vocab_size=128)
    with pytest.raises(TextTooShortError, match="expected at least 8 for 2 windows of 4"):
        evaluation_windows(_documents("abcdef"), BYTES, seqlen=4, vocab_size=128, windows=2)
    with pytest.raises(TextTooShortError, match=r"1 of 2 documents longer than 4 tokens \(the longest has 6\)"):
        calibration_windows(
            _documents("abc", "abcde"), BYTES, nsamples=2, seqlen=4, seed=0, vocab_size=128, sampling="documents"
        )


def test_ids_outside_the_vocabulary() -> None:
    with pytest.raises(SourceError, match="token id 99, expected ids from 0 to 98"):
        evaluation_windows(_documents("abc"), BYTES, seqlen=2, vocab_size=99)
    evaluation_windows(_documents("abc"), BYTES, seqlen=2, vocab_size=100)
    table = TokenTable("table", np.array([[3, -1]], dtype=np.int32))
    with pytest.raises(SourceError, match="token id -1"):
        evaluation_windows(table, None, seqlen=2, vocab_size=99)


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.6, 0.4), (-0.1, 0.5), (0.0, 1.1), (float("nan"), 1.0)])
def test_bad_part(part: tuple[float, float]) -> None:
    with pytest.raises(InvalidSettingError, match="0 <= start < stop <= 1"):
        evaluation_windows(_documents("abcdef"), BYTES, seqlen=2, vocab_size=128, part=part)


def test_bad_numbers_and_settings() -> None:
    text = _documents("abcdef")
    for nsamples, seqlen, seed in ((0, 2, 0), (1, 1, 0), (1, 2, -1)):
        with pytest.raises(InvalidSettingError, match="at least"):
            calibration_windows(text, BYTES, nsamples=nsamples, seqlen=seqlen, seed=seed, vocab_size=128)
    with pytest.raises(InvalidSettingError, match="at least 1"):
        evaluation_windows(text, BYTES, seqlen=2, vocab_size=128, windows=0)
    with pytest.raises(InvalidSettingError, match="several documents"):
        calibration_windows(text, BYTES, nsamples=1, seqlen=2, seed=0, vocab_size=128, sampling="documents")
    with pytest.raises(SourceError, match="without a tokenizer"):
        evaluation_windows(text, None, seqlen=2, vocab_size=128)


def test_hash_covers_shape_and_ids() -> None:
    windows = torch.tensor([[1, 2, 300], [4, 5, 6]], dtype=torch.int32)
    data = struct.pack("<2q", 2, 3) + struct.pack("<6i", 1, 2, 300, 4, 5, 6)
    assert windows_hash(windows) == hashlib.sha256(data).hexdigest()
    assert windows_hash(windows.T.contiguous().T) == windows_hash(windows)
    assert windows_hash(windows.reshape(3, 2)) != windows_hash(windows)
    with pytest.raises(ShapeMismatchError):
        windows_hash(windows.long())


def test_no_warning_about_length_from_a_real_tokenizer(caplog: pytest.LogCaptureFixture) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=4)
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        windows = evaluation_windows(_documents("a b b a a b"), tokenizer, seqlen=3, vocab_size=2)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert windows.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert not caplog.records
