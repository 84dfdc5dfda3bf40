"""Windows of several sources: which stand where, and that each source's are those it gives alone."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zpruner.errors import SourceError, TextTooShortError
from zpruner.settings.mixture import mixture_of
from zpruner.settings.texts import MixedSettings
from zpruner.sources import Documents, TokenTable
from zpruner.text import calibration_windows, in_turns, mixed_windows

TEXTS: dict[str, Documents | TokenTable] = {
    "a": Documents("a", tuple(tiny.words(60, seed) for seed in range(8))),
    "b": Documents("b", tuple(tiny.words(60, seed) for seed in range(20, 28))),
    "table": TokenTable("table", np.arange(96, dtype=np.int32).reshape(8, 12) % tiny.VOCABULARY),
    "foreign": TokenTable("foreign", np.full((8, 12), tiny.VOCABULARY, dtype=np.int32)),
}


def own(_: MixedSettings, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32)[:, None].expand(-1, 12)


def mixed(*sources: object, nsamples: int, seed: int = 0) -> Tensor:
    settings = mixture_of({"source": list(sources), "nsamples": nsamples, "seqlen": 12, "seed": seed}, "test", "source")
    windows, begin = mixed_windows(
        settings,
        tiny.tokenizer(),
        vocab_size=tiny.VOCABULARY,
        longest=None,
        read=lambda source: TEXTS[source.source],
        write=own,
    )
    assert begin == ()
    assert windows.shape == (nsamples, 12)
    assert windows.dtype == torch.int32
    return windows


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
def test_sources_take_turns(counts: list[int]) -> None:
    parts = [
        torch.tensor([[number, index] for index in range(count)]).view(-1, 2) for number, count in enumerate(counts)
    ]
    found = in_turns(parts)
    total = sum(counts)
    for number, count in enumerate(counts):
        own = found[found[:, 0] == number, 1]
        assert own.tolist() == list(range(count)), "each source's windows in their order, none twice, none lost"
        seen = torch.cumsum(found[:, 0] == number, dim=0)
        even = torch.arange(1, total + 1) * count / total
        assert float((seen - even).abs().max()) <= len(counts), "no stretch has many more of one source than the whole"


def test_each_source_gives_the_windows_that_it_gives_alone() -> None:
    sources = (
        {"source": "a", "part": [0.5, 1.0], "share": 0.5},
        {"source": "self", "share": 0.2},
        {"source": "table", "share": 0.3},
    )
    windows = mixed(*sources, nsamples=10, seed=5)
    order = [0, 2, 1, 0, 0, 2, 0, 1, 2, 0]  # at .1, .3, .5, .7, .9 of the way; .25, .75; .17, .5, .83
    alone = [
        calibration_windows(
            TEXTS["a"], tiny.tokenizer(), nsamples=5, seqlen=12, seed=5, vocab_size=tiny.VOCABULARY, part=(0.5, 1.0)
        ),
        own(MixedSettings(source="self"), 2),
        calibration_windows(TEXTS["table"], None, nsamples=3, seqlen=12, seed=5, vocab_size=tiny.VOCABULARY),
    ]
    for number, expected in enumerate(alone):
        assert torch.equal(windows[torch.tensor(order) == number], expected)
    assert torch.equal(windows, mixed(*sources, nsamples=10, seed=5))
    assert not torch.equal(windows, mixed(*sources, nsamples=10, seed=6))


def test_every_source_passes_the_checks_of_one() -> None:
    with pytest.raises(
        TextTooShortError, match=r"table, part 0 to 0\.5: got 48 tokens, expected at least 60 for 5 wind"
    ):
        mixed("a", {"source": "table", "part": [0.0, 0.5]}, nsamples=10)
    with pytest.raises(SourceError, match="foreign: got token id 160, expected ids from 0 to 159"):
        mixed("a", "foreign", nsamples=4)
