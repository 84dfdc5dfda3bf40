"""Text that a model writes itself: windows of sampled tokens, each from its own random numbers.

That calibration may do without anybody's text is from Williams et al. (arXiv:2410.17170). Temperature, share of the
probability and what is dropped are those of Ji et al. (arXiv:2410.17711).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zpruner.errors import InvalidSettingError, ModelStructureError, SourceError
from zpruner.execution import Runner
from zpruner.settings.texts import MixedSettings
from zpruner.text.sampling import Numbers, draw
from zpruner.text.tokenizer import Bos, Encoding, Tokenizer, added_tokens, document_encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOGETHER = 8
"""Windows that are written side by side, the last ones too: another number may round otherwise."""


@dataclass(frozen=True)
class Writing:
    """What decides the windows that a model writes.

    Attributes:
        windows: how many.
        tokens: of each, what it begins with not counted.
        start: tokens that the model writes after; they are in no window.
        begin: tokens that every window begins with.
        seed: of the random numbers; window i has its own, whatever the number of windows.
        temperature, top_p: as in `draw`.
    """

    windows: int
    tokens: int
    start: tuple[int, ...]
    begin: tuple[int, ...]
    seed: int
    temperature: float
    top_p: float

    def batches(self, together: int = TOGETHER) -> list[range]:
        """Return the windows of every batch."""
        return [range(at, min(at + together, self.windows)) for at in range(0, self.windows, together)]


def writing_of(
    source: MixedSettings, count: int, tokenizer: Tokenizer | None, *, seqlen: int, seed: int, bos: Bos
) -> Writing:
    """Return what has a model write `count` windows, and those that are dropped again.

    Args:
        source: `self`, with its settings.
        count: windows that are wanted.
        tokenizer: the model's.
        seqlen: tokens per window, those that it begins with by `bos` included.
        seed: of the random numbers.
        bos: what windows begin with, see `Bos`.

    Raises:
        SourceError, InvalidSettingError: as `start_of` and `encoding_of`; no token left to write.
    """
    start = start_of(tokenizer, source.prompt)
    assert tokenizer is not None
    assert source.temperature is not None
    assert source.top_p is not None
    assert source.drop is not None
    begin = document_encoding(tokenizer, bos).begin
    if seqlen <= len(begin):
        raise InvalidSettingError("seqlen", str(seqlen), f"at least {len(begin) + 1}", f"Raise it to {len(begin) + 1}.")
    windows = math.ceil(count / (1 - Fraction(str(source.drop))))
    return Writing(windows, seqlen - len(begin), start, begin, seed, source.temperature, source.top_p)


def start_of(tokenizer: Tokenizer | None, prompt: str | None) -> tuple[int, ...]:
    """Return what a model begins to write after: a prompt's tokens, else what its tokenizer puts before a text.

    Raises:
        SourceError: no tokenizer.
        InvalidSettingError: no prompt, and a tokenizer that neither adds a BOS nor has one.
    """
    if tokenizer is None:
        raise SourceError("source: self", "a model without a tokenizer", "its BOS token", "Give a model with one.")
    before, after = added_tokens(tokenizer)
    if prompt is not None:
        return (*before, *Encoding(tokenizer, before, after).ids(prompt, "prompt").tolist())
    token = getattr(tokenizer, "bos_token_id", None)
    if before:
        return before
    if token is None:
        raise InvalidSettingError(
            "source: self",
            "a tokenizer without a BOS token",
            "a text for the model to write after",
            "Set prompt, e.g. to the text of the token that ends documents.",
        )
    return (int(token),)


def check_room(writing: Writing, longest: int | None) -> None:
    """Raise InvalidSettingError where the model cannot take as many tokens at once as it is to write."""
    # The last token is written and not read.
    if longest is not None and (needed := len(writing.start) + writing.tokens - 1) > longest:
        got = f"{needed} tokens to read while it writes a window"
        expected = f"at most {longest}, the most tokens that the model takes at once"
        raise InvalidSettingError("source: self", got, expected, "Lower seqlen, or shorten the prompt.")


def written(
    runner: Runner,
    writing: Writing,
    batches: Sequence[range],
    together: int = TOGETHER,
    step: Callable[[], None] = lambda: None,
    at_once: int = 1,
) -> Iterator[tuple[range, Tensor, Tensor]]:
    """Yield batches of windows as they are finished: which, int32 (windows, tokens), and mean losses, float32.

    An EOS ends nothing: the model writes on as it does after it, as it read in training.

    Args:
        runner: of the model.
        writing: what decides the windows.
        batches: of `writing.batches` those that are wanted.
        together: windows in a batch; where fewer are wanted, the others are left out when they are written.
        step: called after every token of a batch.
        at_once: batches side by side; more than 1 where weights are read block by block, which every token needs.

    Raises:
        ModelStructureError: a model that cannot continue a text.
        NonFiniteError: as `draw`.
    """
    model: Any = runner.model
    if not model.can_generate():
        raise ModelStructureError(
            f"model {type(model).__name__}", "no way to generate", "a model that can continue a text", "Give a text."
        )
    with _plainly(model):
        for first in range(0, len(batches), at_once):
            wave = batches[first : first + at_once]
            calls = [partial(_write, runner, writing, batch, together, step) for batch in wave]
            for batch, (ids, losses) in zip(wave, runner.run(calls), strict=True):
                yield batch, ids, losses
            runner.release()


def kept_windows(writing: Writing, ids: Tensor, losses: Tensor, count: int) -> Tensor:
    """Return the `count` windows of the lowest perplexity in their order, int32 (count, seqlen).

    Args:
        writing: as they were written.
        ids: int32 (windows, tokens).
        losses: mean over each window's tokens, float32 (windows,).
        count: how many are kept; of equal ones the first.
    """
    kept = ids[torch.sort(torch.sort(losses, stable=True).indices[:count]).values]
    return torch.cat([torch.tensor([writing.begin], dtype=torch.int32).expand(count, -1), kept], dim=1)


def cache_bytes(model: PreTrainedModel, writing: Writing, together: int = TOGETHER) -> int:
    """Return the most bytes that a batch's keys and values take: as wide in every layer as the hidden state."""
    config = model.config.get_text_config()
    width = 2 * int(getattr(config, "hidden_size", 0)) * int(getattr(config, "num_hidden_layers", 0))
    return width * model.dtype.itemsize * together * (len(writing.start) + writing.tokens)


def _write(
    runner: Runner, writing: Writing, batch: range, together: int, step: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    from transformers import GenerationConfig

    pen = _Pen(writing, range(batch.start, batch.start + together), step)
    start = torch.tensor([writing.start] * together, device=runner.device)
    model: Any = runner.model
    model.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        logits_processor=[pen],
        generation_config=GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=writing.tokens),
    )
    ids, losses = torch.stack(pen.ids, dim=1).int(), torch.stack(pen.losses).mean(dim=0).float()
    return ids[: len(batch)], losses[: len(batch)]


class _Pen:
    """Leaves the model one token for each window: the one that is drawn."""

    def __init__(self, writing: Writing, indices: range, step: Callable[[], None]) -> None:
        self._writing, self._step = writing, step
        streams = (np.random.Generator(np.random.PCG64([writing.seed, index])) for index in indices)
        self._random: Numbers = np.stack([stream.random(writing.tokens) for stream in streams], axis=1)
        self.ids: list[Tensor] = []
        self.losses: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = self._random[len(self.ids)]
        ids, losses = draw(scores, at, self._writing.temperature, self._writing.top_p)
        self.ids.append(ids)
        self.losses.append(losses)
        self._step()
        return torch.full_like(scores, -torch.inf).scatter_(1, ids[:, None].to(scores.device), 0.0)


@contextmanager
def _plainly(model: PreTrainedModel) -> Iterator[None]:
    """Let a model write without its own rules for it: no end, no penalties, no suppressed tokens."""
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before
