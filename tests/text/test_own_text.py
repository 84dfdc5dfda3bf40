"""Text that a model writes itself: against a sampler in plain Python, seeds, what windows hold, and refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_bos import Letters
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from zpruner.errors import InvalidSettingError, NonFiniteError, SourceError
from zpruner.execution import WholeRunner
from zpruner.settings.texts import MixedSettings
from zpruner.text import Writing, cache_bytes, check_room, kept_windows, writing_of, written
from zpruner.text.sampling import draw
from zpruner.text.writing import start_of

HOW = Writing(windows=5, tokens=10, start=(1,), begin=(), seed=3, temperature=0.7, top_p=0.9)


def plain_draw(logits: list[float], at: float, temperature: float, top_p: float) -> int:
    """Nucleus sampling, one token after another."""
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    total = math.fsum(weights)
    ranked = sorted(range(len(logits)), key=lambda token: (-weights[token], token))
    kept: list[int] = []
    while math.fsum(weights[token] for token in kept) / total < top_p and len(kept) < len(ranked):
        kept.append(ranked[len(kept)])
    target, passed = at * math.fsum(weights[token] for token in kept), 0.0
    for token in kept:
        passed += weights[token]
        if passed > target:
            return token
    return kept[-1]


def write(model: PreTrainedModel, how: Writing, together: int = 3, **more: Any) -> tuple[Tensor, Tensor]:
    found = list(written(WholeRunner(model), how, how.batches(together), together, **more))
    return torch.cat([ids for _, ids, _ in found]), torch.cat([losses for _, _, losses in found])


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=40),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.2, 2),
    st.floats(0.05, 1),
)
def test_draws_equal_a_plain_sampler(logits: list[float], at: float, temperature: float, top_p: float) -> None:
    found, losses = draw(torch.tensor([logits]), np.array([at]), temperature, top_p)
    expected = plain_draw(logits, at, temperature, top_p)
    weights = torch.tensor(logits, dtype=torch.float64)
    # Where rounding decides, a token as likely as the expected one will do.
    near = [plain_draw(logits, min(max(at + way, 0.0), 1 - 1e-12), temperature, top_p + way) for way in (-1e-9, 1e-9)]
    assert int(found) in (expected, *near)
    assert float(losses) == pytest.approx(float(weights.logsumexp(0) - weights[int(found)]), abs=1e-9)


def test_what_a_draw_takes() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    draws = [int(draw(logits, np.array([at]), 1.0, 1.0)[0]) for at in (0.0, 0.49, 0.51, 0.79, 0.81, 0.94, 0.96)]
    assert draws == [0, 0, 1, 1, 2, 2, 3]
    # 0.5 and 0.3 are the fewest that hold 0.75; between them the draw falls at 5/8.
    assert [int(draw(logits, np.array([at]), 1.0, 0.75)[0]) for at in (0.62, 0.63, 0.99)] == [0, 1, 1]
    assert int(draw(logits, np.array([0.99]), 1.0, 0.5)[0]) == 0
    # At temperature 1/2 the weights are squared: 0.25 of 0.365.
    assert [int(draw(logits, np.array([at]), 0.5, 1.0)[0]) for at in (0.68, 0.69)] == [0, 1]
    with pytest.raises(NonFiniteError, match="logits: got NaN or infinity"):
        draw(torch.tensor([[0.0, math.nan]]), np.array([0.5]), 1.0, 1.0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_text_equals_one_written_token_by_token(family: str) -> None:
    model = tiny.build(family)
    ids, losses = write(model, HOW)
    assert ids.shape == (5, 10)
    assert ids.dtype == torch.int32
    for index in range(5):
        random = np.random.Generator(np.random.PCG64([3, index])).random(10)
        text, lost = [1], 0.0
        for at in random:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].double()
            text.append(plain_draw(logits.tolist(), float(at), 0.7, 0.9))
            lost -= float(logits.log_softmax(0)[text[-1]])
        assert ids[index].tolist() == text[1:]
        assert float(losses[index]) == pytest.approx(lost / 10, abs=1e-5)


def test_first_tokens_are_as_frequent_as_the_model_finds_them_likely(llama_model: PreTrainedModel) -> None:
    how = Writing(windows=600, tokens=1, start=(1,), begin=(), seed=0, temperature=1.0, top_p=1.0)
    ids, _ = write(llama_model, how, together=200)
    with torch.no_grad():
        likely = llama_model(input_ids=torch.tensor([[1]])).logits[0, 0].double().softmax(0)
    counts = torch.bincount(ids[:, 0].long(), minlength=len(likely))
    assert float(((counts - 600 * likely) ** 2 / (600 * likely)).sum()) < 160 + 5 * math.sqrt(2 * 160)
    assert float(((counts - 600 / 160) ** 2 / (600 / 160)).sum()) > 1000, "far from uniform"


def test_a_seed_is_a_text(llama_model: PreTrainedModel) -> None:
    ids, losses = write(llama_model, HOW)
    again, same = write(llama_model, HOW)
    assert torch.equal(ids, again)
    assert torch.equal(losses, same)
    fewer, _ = write(llama_model, Writing(2, 10, (1,), (), 3, 0.7, 0.9))
    assert torch.equal(fewer, ids[:2]), "a window's text does not depend on how many are written"
    assert len({tuple(row) for row in ids.tolist()}) == 5
    other, _ = write(llama_model, Writing(5, 10, (1,), (), 4, 0.7, 0.9))
    assert not (other == ids).all(dim=1).any()


def test_nothing_ends_a_text_and_the_models_own_rules_are_put_back(llama_model: PreTrainedModel) -> None:
    before = llama_model.generation_config
    ids, _ = write(llama_model, HOW)
    rules = GenerationConfig(eos_token_id=[*range(2, 160)], repetition_penalty=9.0, suppress_tokens=[5, 6, 7])
    llama_model.generation_config = rules
    try:
        found, _ = write(llama_model, HOW)
        assert llama_model.generation_config is rules
    finally:
        llama_model.generation_config = before
    assert torch.equal(found, ids)


def test_progress_counts_tokens(llama_model: PreTrainedModel) -> None:
    steps: list[int] = []
    write(llama_model, HOW, step=lambda: steps.append(1))
    assert len(steps) == 2 * 10


def own(**changes: Any) -> MixedSettings:
    return MixedSettings(source="self", **changes)


def test_what_is_written_and_what_is_kept() -> None:
    how = writing_of(own(drop=0.25), 6, Letters(), seqlen=8, seed=1, bos="auto")
    assert (how.windows, how.tokens, how.start, how.begin) == (8, 7, (1,), (1,))
    assert writing_of(own(drop=0.2), 4, Letters(), seqlen=8, seed=1, bos="auto").windows == 5
    assert writing_of(own(drop=0), 4, Letters(), seqlen=8, seed=1, bos="auto").windows == 4
    ids, losses = torch.arange(56, dtype=torch.int32).view(8, 7), torch.tensor([3.0, 1, 2, 9, 2, 8, 2, 2])
    kept = kept_windows(how, ids, losses, 6)
    assert kept[:, 0].tolist() == [1] * 6
    assert torch.equal(kept[:, 1:], ids[[0, 1, 2, 4, 6, 7]])
    assert torch.equal(kept_windows(how, ids, losses, 3)[:, 1:], ids[[1, 2, 4]])


def test_windows_begin_as_those_of_texts_do() -> None:
    added, bare = Letters((2, 1)), Letters(())
    assert writing_of(own(), 1, added, seqlen=8, seed=0, bos="never").begin == ()
    for tokenizer, bos, start, begin in ((added, "auto", (2, 1), (2, 1)), (bare, "auto", (1,), ())):
        how = writing_of(own(), 1, tokenizer, seqlen=8, seed=0, bos=bos)
        assert (how.start, how.begin, how.tokens) == (start, begin, 8 - len(begin))
    assert writing_of(own(), 1, bare, seqlen=8, seed=0, bos="always").begin == (1,)
    prompted = writing_of(own(prompt="AB"), 1, added, seqlen=8, seed=0, bos="auto")
    assert (prompted.start, prompted.begin) == ((2, 1, 65, 66), (2, 1))
    assert start_of(Letters((), (2,), None), "AB") == (65, 66)


def test_refusals(llama_model: PreTrainedModel) -> None:
    with pytest.raises(InvalidSettingError, match=r"got a tokenizer without a BOS token, expected a text.* Set prompt"):
        start_of(Letters((), (), None), None)
    with pytest.raises(SourceError, match="got a model without a tokenizer"):
        start_of(None, "AB")
    with pytest.raises(InvalidSettingError, match=r"seqlen: got 2, expected at least 3"):
        writing_of(own(), 1, Letters((2, 1)), seqlen=2, seed=0, bos="auto")
    check_room(HOW, 10)
    with pytest.raises(
        InvalidSettingError, match=r"got 10 tokens to read while it writes a window, expected at most 9"
    ):
        check_room(HOW, 9)
    # 3 blocks, 32 wide, keys and values of 11 positions in 4 bytes, of 8 windows.
    assert cache_bytes(llama_model, HOW) == 3 * 32 * 2 * 11 * 4 * 8


def test_block_by_block_it_is_the_same_text(tmp_path: Path) -> None:
    from zpruner.checkpoint import Checkpoint, write_manifest
    from zpruner.execution import Skeleton, Spill, StreamedRunner
    from zpruner.model import load_model, open_checkpoint

    folder = tiny.save_checkpoint(tmp_path / "model")
    write_manifest(folder, "tiny", dtype="float32")
    opened = open_checkpoint(folder, "float32", Checkpoint(folder))
    brought: list[str] = []

    class Counting(StreamedRunner):
        def _bring(self, unit: str) -> None:
            brought.append(unit)
            super()._bring(unit)

    runner = Counting(Skeleton(opened, torch.device("cpu")), None, Spill(), small=0)
    found = list(written(runner, HOW, HOW.batches(2), 2, at_once=3))
    expected = list(written(WholeRunner(load_model(folder, device="cpu")), HOW, HOW.batches(2), 2))
    for (batch, ids, losses), (other, same, as_much) in zip(found, expected, strict=True):
        assert batch == other
        assert torch.equal(ids, same)
        assert torch.equal(losses, as_much)
    assert brought.count("model.layers.1") == HOW.tokens, "read once for the tokens of all batches"
